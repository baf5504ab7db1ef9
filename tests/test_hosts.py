"""What serves a host: which workers, kept alive and ended whole; what setup makes; what status shows."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, Worker, WorkerStatus, WorkPool
from prefect.states import Running, Scheduled
from rich.console import Console

from flows.cli_hosts import parse_limit
from flows.host_setup import read_definitions, require_one_heartbeat, zombie_automation
from flows.host_status import activity, activity_table, ago, pool_table
from flows.host_workers import WorkerPlan, plan_workers
from flows.worker_process import children_of, end_processes
from tasks.pools import HEARTBEAT, HEARTBEAT_SECONDS, POOLS

ROOT = Path(__file__).parents[1]
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


def test_a_worker_per_gpu_one_for_several_and_one_for_studies() -> None:
    plans = plan_workers("0,1", "2, 3", 4, "h1")
    assert [(one.name, one.pool, one.limit, one.gpus) for one in plans] == [
        ("h1-gpu0", "h100", 1, "0"),
        ("h1-gpu1", "h100", 1, "1"),
        ("h1-gpus2-3", "h100-multi", 1, "2,3"),
        ("h1-cpu", "cpu", 4, ""),
    ]


@pytest.mark.parametrize(
    ("gpu", "multi", "words"),
    [
        (None, None, "nothing to serve"),
        ("0,0", None, "each once"),
        ("all", None, "indices of GPUs"),
        ("0,1", "1,2", "GPU 1 is in --gpu and in --multi"),
    ],
)
def test_a_gpu_belongs_to_one_worker(gpu: str | None, multi: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan_workers(gpu, multi, 0, "h1")


def test_a_worker_hands_its_gpu_its_root_and_the_heartbeat_of_all_to_its_flow_runs(tmp_path: Path) -> None:
    plan = plan_workers("3", None, 0, "h1")[0]
    base = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PYTHONPATH": "/mine", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    environment = plan.environment(base, tmp_path)
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["ALIGNFLOW_ROOT"] == str(tmp_path)
    assert environment[HEARTBEAT] == str(HEARTBEAT_SECONDS)
    assert environment["PYTHONPATH"] == f"{ROOT}{os.pathsep}/mine"
    assert environment["PREFECT_WORKER_QUERY_SECONDS"] == "1"
    assert "PREFECT_LOGGING_LEVEL" not in environment
    assert plan.command()[-9:-1] == ["--pool", "h100", "--name", "h1-gpu3", "--limit", "1", "--type", "process"]


def test_one_heartbeat_for_all_and_the_dead_are_known_after_three_at_least() -> None:
    require_one_heartbeat({})
    require_one_heartbeat({HEARTBEAT: "30"})
    with pytest.raises(ValueError, match="every 30 s, or healthy ones"):
        require_one_heartbeat({HEARTBEAT: "180"})
    trigger: Any = zombie_automation().trigger
    assert trigger.within >= 3 * timedelta(seconds=HEARTBEAT_SECONDS)
    assert trigger.after == {"prefect.flow-run.heartbeat"} < trigger.expect
    assert trigger.match_related.root["prefect.resource.id"] == ["prefect.tag.alignflow"]


def test_prefect_yaml_has_a_limit_for_each_pool_and_the_heartbeat() -> None:
    definitions = read_definitions()
    assert set(definitions["limits"]) == {pool["name"] for pool in definitions["pools"].values()} == set(POOLS)


def test_a_limit_is_a_number_of_a_pool() -> None:
    assert parse_limit("h100=8") == ("h100", 8)
    for text in ("h100", "h100=", "h100=0", "h100=x"):
        with pytest.raises(ValueError, match="is not POOL=N"):
            parse_limit(text)


class Sleeper(WorkerPlan):
    """Stands in for a worker: it starts one process, as for a flow run, and ends when it is told to."""

    def command(self) -> list[str]:
        code = (
            "import signal, subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
            "print('up', flush=True)\n"
            "time.sleep(60)\n"
        )
        return [sys.executable, "-c", code]


def runs(process: int) -> bool:
    """Whether a process is there, and no zombie that nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


KEEP = """
import sys
from pathlib import Path
from test_hosts import Sleeper
from flows import worker_keeper
worker_keeper.RESTART_SECONDS = 0.2
workers = [Sleeper(f"w{n}", "h100", 1, str(n)) for n in range(2)]
sys.exit(worker_keeper.serve(workers, Path("."), lambda line: print(line, flush=True)))
"""


def test_a_worker_that_dies_is_started_again_and_all_end_together(tmp_path: Path) -> None:
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEP], cwd=tmp_path, env={**os.environ, **paths}, stdout=subprocess.PIPE, text=True
    )
    try:
        first = until(lambda: grandchildren(keeper.pid, 2))
        os.kill(children_of(keeper.pid)[0], signal.SIGKILL)
        second = until(
            lambda: grandchildren(keeper.pid, 2) if len(set(grandchildren(keeper.pid, 2)) - set(first)) else []
        )
        keeper.send_signal(signal.SIGTERM)
        output, _ = keeper.communicate(timeout=30)
    finally:
        keeper.kill()
    assert keeper.returncode == 0
    assert "what the worker before it ran" in output
    assert "ended with code -9: started again in 0 s" in output
    assert output.count("serves pool h100") == 3
    until(lambda: not any(map(runs, (*first, *second))))


def grandchildren(process: int, count: int) -> list[int]:
    """Processes of the workers, once there are so many; else none."""
    found = sorted(grandchild for child in children_of(process) for grandchild in children_of(child))
    return found if len(found) == count else []


def until(asked: Any, seconds: float = 30) -> Any:
    """What `asked` answers once that is anything."""
    deadline = time.monotonic() + seconds
    while not (answer := asked()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def test_flow_runs_are_asked_to_end_and_waited_for() -> None:
    code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(0)))\n"
    child = subprocess.Popen(
        [sys.executable, "-c", code + "print('up', flush=True)\ntime.sleep(60)"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert child.pid in children_of(os.getpid())
    end_processes([child.pid], lambda: False)
    assert child.wait(timeout=5) == 0
    child.stdout.close()


def shown(table: Any) -> str:
    """A table as text."""
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table)
    console.file.close()
    return console.export_text()


def flow_run(**fields: Any) -> FlowRun:
    """One from a deployment."""
    return FlowRun(id=uuid4(), flow_id=uuid4(), deployment_id=uuid4(), **fields)


def test_status_tells_what_runs_where_how_far_and_who_is_gone() -> None:
    run = FlowRun(
        id=uuid4(), flow_id=uuid4(), name="tiny scratch grpo/base/seed0", state=Running(), deployment_id=uuid4()
    )
    run.tags = ["stage:grpo", "study:tiny"]
    run.labels = {"prefect.worker.name": "h1-gpu0"}
    run.start_time = NOW - timedelta(minutes=3)
    waiting = FlowRun(
        id=uuid4(), flow_id=uuid4(), name="x", state=Scheduled(), deployment_id=uuid4(), work_pool_name="h100"
    )
    active = [activity(run, "stage", "step 3/50  reward 0.5", {"h1-gpu0"}), activity(waiting, "stage", "")]
    text = shown(activity_table(active, NOW))
    for words in (
        "grpo",
        "tiny scratch grpo/base/seed0",
        "Running",
        "h1-gpu0 (offline)",
        "step 3/50  reward 0.5",
        "3 min",
    ):
        assert words in text
    assert "pool h100" in text
    pool = WorkPool(name="h100", type="process", concurrency_limit=4, default_queue_id=uuid4())
    gone = Worker(name="h1-gpu0", work_pool_id=uuid4(), status=WorkerStatus.OFFLINE)
    gone.last_heartbeat_time = NOW - timedelta(hours=3)
    there = Worker(name="h2-gpu0", work_pool_id=uuid4(), status=WorkerStatus.ONLINE, last_heartbeat_time=NOW)
    empty = WorkPool(name="cpu", type="process", is_paused=True, default_queue_id=uuid4())
    text = shown(pool_table([(pool, [gone, there]), (empty, [])], active, NOW))
    for words in ("offline", "3.0 h", "idle", "paused", "nobody serves it"):
        assert words in text


def test_times_are_told_in_the_unit_that_suits_them() -> None:
    spans = [timedelta(seconds=45), timedelta(minutes=3), timedelta(hours=2.5)]
    assert [ago(NOW - span, NOW) for span in spans] == ["45 s", "3 min", "2.5 h"]
    assert ago(None, NOW) == ""
