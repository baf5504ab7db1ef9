"""Every fault that a study on hosts may meet, for real: servers, workers, stages and machines killed in the middle.

The same command completes each time, and nothing shows afterwards: see `CrashBench.finish`. A table at the end says
what each fault cost.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator

import pytest
from crash_bench import Case, CrashBench

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HEADER = ("fault", "what happened", "seconds", "steps lost", "equal")


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashBench]:
    """Half a minute to make; prints the table when the last test is done."""
    bench = CrashBench(tmp_path_factory.mktemp("crash"))
    try:
        bench.set_up()
        yield bench
    finally:
        bench.close()
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{table(bench.rows)}")


def test_the_stage_is_killed(bench: CrashBench) -> None:
    case = bench.begin_and_meet(1)
    os.kill(bench.stage_process(case), signal.SIGKILL)
    bench.finish(case, "SIGKILL of the stage", "asked for again")
    assert "attempt 2 of 3" in bench.log(case.log)


def test_the_worker_is_killed(bench: CrashBench) -> None:
    case = bench.begin_and_meet(2)
    os.kill(bench.worker_process(case), signal.SIGKILL)
    bench.finish(case, "SIGKILL of the worker", "its stage saved and ended, asked for again")
    assert [run["state_name"] for run in bench.runs_of(case)] == ["Crashed", "Completed"]


def test_the_parent_is_killed(bench: CrashBench) -> None:
    case = bench.begin_and_meet(3, steps=120)
    case.parent.kill()
    case.parent.wait()
    bench.ask_again(case)
    bench.finish(case, "SIGKILL of the parent", "the next one attached")
    assert "is already with pool h100" in bench.log(case.log)
    assert len(bench.runs_of(case)) == 1


def test_prefect_is_killed_and_comes_back(bench: CrashBench) -> None:
    case = bench.begin_and_meet(4, steps=80)
    bench.kill_prefect()
    bench.until(lambda: bench.step(case) >= case.reached + 3)
    bench.start_prefect()
    bench.finish(case, "Prefect's server killed", "training went on")
    assert len(bench.runs_of(case)) == 1


def test_mlflow_is_killed_and_comes_back(bench: CrashBench) -> None:
    case = bench.begin_and_meet(5, steps=60)
    bench.mlflow.kill()
    bench.until(lambda: bench.step(case) >= case.reached + 3)
    bench.mlflow.start()
    bench.finish(case, "MLflow's server killed", "training went on, points replayed")
    assert len(bench.runs_of(case)) == 1


def test_the_store_is_away_for_a_while(bench: CrashBench) -> None:
    case = bench.begin_and_meet(6, steps=60)
    away = bench.store.rename(bench.store.with_name("away"))
    bench.until(lambda: bench.step(case) >= case.reached + 5)
    time.sleep(3)
    away.rename(bench.store)
    bench.finish(case, "the store unreachable", "training went on, uploads waited")
    assert len(bench.runs_of(case)) == 1


def test_two_parents_at_once(bench: CrashBench) -> None:
    case = bench.begin(7)
    first = case.parent
    bench.ask_again(case, machine="desk")
    bench.until(lambda: bench.is_met(case))
    bench.mark(case)
    assert first.wait(timeout=280) == 0, bench.log(case.logs[0])
    bench.finish(case, "two parents at once", "one computed, one attached")
    assert len(bench.runs_of(case)) == 1
    for log in case.logs:
        assert any(f"grpo/base/seed7: {how} pool h100" in bench.log(log) for how in ("asked of", "is already with"))


def test_a_worker_with_its_stage_a_host_that_sleeps_and_a_lost_host(bench: CrashBench) -> None:
    """Together, for all three wait until Prefect's server has missed enough heartbeats."""
    cases = [bench.begin(seed, steps=120) for seed in (8, 9, 10)]
    bench.until(lambda: all([bench.is_met(case) for case in cases]))
    killed, asleep, lost = cases
    machines, sleeper = [bench.machine_of(case) for case in cases], bench.stage_process(asleep)
    assert len(set(machines)) == 3
    for case, strike in ((killed, kill_worker_and_stage), (asleep, put_to_sleep), (lost, lose_host)):
        bench.mark(case)
        strike(bench, case)
    bench.serve("fourth")
    bench.until(lambda: bench.attempts(asleep) == 2, 280)
    bench.send(machines[1], signal.SIGCONT)
    bench.until(lambda: sleeper not in bench.pids())
    bench.finish(killed, "SIGKILL of worker and stage", "found dead by its heartbeat")
    bench.finish(asleep, "SIGSTOP past the heartbeat, SIGCONT", "superseded, it ended without harm")
    bench.finish(lost, "host lost, its directories deleted", "found dead by its heartbeat")
    assert "attempt 2 computes grpo/" in bench.log(f"{machines[1]}.log")


def kill_worker_and_stage(bench: CrashBench, case: Case) -> None:
    """Neither can tell anybody."""
    for process in (bench.worker_process(case), bench.stage_process(case)):
        os.kill(process, signal.SIGKILL)


def put_to_sleep(bench: CrashBench, case: Case) -> None:
    """The whole host, as a laptop that is closed."""
    bench.send(bench.machine_of(case), signal.SIGSTOP)


def lose_host(bench: CrashBench, case: Case) -> None:
    """All processes of its host, then the directories."""
    machine = bench.machine_of(case)
    bench.send(machine, signal.SIGKILL)
    bench.hosts[machine].wait()
    shutil.rmtree(bench.home(machine))


def table(rows: list[tuple[str, ...]]) -> str:
    """Aligned columns."""
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (HEADER, *rows)
    )
