"""Grading children that we own: limits, replacement, threads, shutdown.

Run: pytest tests/test_grading_pool.py
"""

import mmap
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment_core import grading_child, grading_pool
from alignment_core.failures import HostError
from alignment_core.grading_pool import Batch, GradingPool
from alignment_core.grading_process import GradingProcess, Limits
from alignment_core.rewards import grade_batch, grade_stream, r1_zero_reward_fn, submit_batch
from alignment_core.verdicts import Question, Verdict

ROOT = Path(__file__).resolve().parents[1]
RIGHT, WRONG = Question("1/2", (r"\frac{1}{2}",)), Question("3", ("4",))
HANGS = Question(r"\sum_{n=1}^{\infty}\frac{\sin(n^3)}{n^{7}+n+1}", ("4",))
"""Nothing we compute, and math-verify tries."""


PATIENT = Limits(wall_seconds=60, cpu_seconds=60)
"""For tests that are not about time: a machine that stands still for a second makes no question late."""


@pytest.fixture(scope="module")
def fast_pool() -> Iterator[GradingPool]:
    with GradingPool(2, limits=PATIENT) as pool:
        yield pool


@pytest.fixture(scope="module")
def thorough_pool() -> Iterator[GradingPool]:
    pytest.importorskip("math_verify", reason="thorough grading needs math-verify: install it to run this test")
    with GradingPool(1, "thorough", Limits(wall_seconds=1.2, cpu_seconds=1.0)) as pool:
        yield pool


def correct(verdicts: list[Verdict]) -> list[bool]:
    return [verdict.correct for verdict in verdicts]


def test_verdicts_come_back_in_order(fast_pool: GradingPool) -> None:
    questions = [Question(str(number), (str(number - number % 3),)) for number in range(300)]
    assert correct(fast_pool.compare(questions)) == [number % 3 == 0 for number in range(300)]
    assert fast_pool.compare([]) == []
    assert len(fast_pool.pids()) == 2


def test_the_memory_of_the_parent_does_not_count_as_the_childs() -> None:
    ballast = bytearray(64 * 2**20)
    ballast[:: 2**12] = b"x" * len(ballast[:: 2**12])  # resident, not only reserved
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    with GradingPool(1, limits=Limits(resident_bytes=held - 32 * 2**20)) as pool:
        for _ in range(2):
            assert pool.compare([Question("1", ("1",))])[0].correct
            (pid,) = pool.pids()
        assert pool.compare([Question("1", ("1",))])[0].correct
        assert pool.pids() == [pid]
    del ballast


def test_a_pool_gives_the_verdicts_of_this_process() -> None:
    responses = [
        f" r </think> <answer> {answer} </answer>" for answer in ("8", "0.5", "9", "sqrt(8)", r"\boxed{1")
    ] * 40
    golds = ["8", "1/2", "8", r"2\sqrt{2}", "1"] * 40
    here = grade_batch(responses, golds)
    assert grade_batch(responses, golds, workers=2) == here
    assert list(grade_stream(zip(responses, golds, strict=True), workers=1, chunk=16)) == here
    assert list(grade_stream(zip(responses, golds, strict=True), chunk=16)) == here


def test_a_batch_is_graded_while_its_asker_goes_on() -> None:
    under_way = submit_batch([" r </think> <answer> 8 </answer>"] * 200, ["8"] * 200, workers=1)
    assert len(under_way.result(timeout=60)) == 200
    assert under_way.done()
    with pytest.raises(TimeoutError, match="not there yet"):
        Batch([RIGHT]).result(timeout=0.0)


def test_only_the_guilty_question_is_late_and_the_batch_goes_on(thorough_pool: GradingPool) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    before, _ = signal.setitimer(signal.ITIMER_REAL, 1000.0)
    outcome: list[list[Verdict]] = []
    questions = [RIGHT, WRONG, HANGS, RIGHT, HANGS, WRONG, *[RIGHT] * 40]
    thread = threading.Thread(target=lambda: outcome.append(thorough_pool.compare(questions)))
    thread.start()
    thread.join(60)
    (verdicts,) = outcome
    assert correct(verdicts) == [True, False, False, True, False, False, *[True] * 40]
    assert [verdict.status for verdict in verdicts] == ["ok", "ok", "timeout", "ok", "timeout", "ok", *["ok"] * 40]
    assert all((verdicts[place].milliseconds or 0) > 500 for place in (2, 4))
    assert signal.getsignal(signal.SIGALRM) is handler
    left, _ = signal.setitimer(signal.ITIMER_REAL, before)
    assert 900 < left < 1000


def test_a_new_thorough_child_is_ready_before_its_first_question() -> None:
    pytest.importorskip("math_verify", reason="thorough grading needs math-verify: install it to run this test")
    with GradingPool(1, "thorough", PATIENT) as pool:
        (verdict,) = pool.compare([Question("the third of the five", ("4",))])
    assert verdict.status == "ok"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import math_verify"], check=True)
    imported = time.monotonic() - started
    assert (verdict.milliseconds or 0) < 1000 * imported, "it waited for an import"


def test_a_killed_answer_keeps_the_next_question_waiting_for_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.grading_process.GRACE_SECONDS", 60.0)  # the child is to end it, not the parent
    pytest.importorskip("math_verify", reason="thorough grading needs math-verify: install it to run this test")
    with GradingPool(2, "thorough") as pool:
        pool.compare([RIGHT, RIGHT])
        before = pool.pids()
        spent = []
        for _ in range(3):
            started = time.monotonic()
            (verdict,) = pool.compare([HANGS])
            spent.append(time.monotonic() - started)
            assert verdict.status == "timeout"
        assert min(spent) < 2
        assert [verdict.status for verdict in pool.compare([HANGS] * 4)] == ["timeout"] * 4
        assert pool.pids() == before


def test_a_copy_that_dies_early_or_grows_costs_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that die at a question, die before any, or grow too large; all verdicts come, in order."""
    mark = mmap.mmap(-1, grading_child.MARK.size)
    limits = grading_child.TimeLimits(1.2, 1.0)
    chunk = [(str(number), ["4"]) for number in range(8)]

    def die(question: Question, mode: str) -> Verdict:
        if question.answer in {"3", "5"}:
            os.kill(os.getpid(), signal.SIGSEGV if question.answer == "3" else signal.SIGPROF)
        return Verdict(question.answer == "4")

    monkeypatch.setattr(grading_child, "_guarded", die)
    statuses = ["ok"] * 3 + ["error", "ok", "timeout", "ok", "ok"]
    for resident_bytes in (1 << 40, 1):
        copies = grading_child.Copies(limits, mark, resident_bytes)
        for _ in range(2):
            verdicts = [verdict for group in copies.answers(chunk) for verdict in group]
            assert correct(verdicts) == [number == 4 for number in range(8)]
            assert [verdict.status for verdict in verdicts] == statuses
        assert copies.end() == 0
    monkeypatch.setattr(grading_child, "_answers", lambda *_: os._exit(1))
    verdicts = [verdict for group in copies.answers(chunk[:2]) for verdict in group]
    assert [verdict.status for verdict in verdicts] == ["error"] * 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a process's children are read from /proc")
def test_a_copy_ends_with_its_original(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify", reason="thorough grading needs math-verify: install it to run this test")
    settled: list[Verdict] = []
    settle = Batch.settle
    monkeypatch.setattr(Batch, "settle", lambda *given: (settle(*given), settled.extend(given[2])))
    with GradingPool(1, "thorough", PATIENT) as pool:
        pool.compare([RIGHT])
        (pid,) = pool.pids()
        (copy,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        under_way = pool.submit([HANGS])
        time.sleep(0.3)  # the copy is at work on it, and would be for a minute
        pool.close()
        with pytest.raises(RuntimeError):
            under_way.result(30)
        assert [verdict.status for verdict in settled] == ["ok"], "closing the pool is no verdict on a question"
        deadline = time.monotonic() + 30
        while running(copy):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_gold_that_hangs_hides_no_other_gold(thorough_pool: GradingPool) -> None:
    (verdict,) = thorough_pool.compare([Question("99999999!", ("4", "99999999 !"))])
    assert (verdict.correct, verdict.status) == (True, "ok")


def test_a_late_answer_scores_0_with_its_status() -> None:
    pytest.importorskip("math_verify")
    response = f" r </think> <answer> {HANGS.answer} </answer>"
    grades = grade_batch([response] * 3, ["4"] * 3, mode="thorough", timed=True)
    for grade in grades:
        assert (grade.format_reward, grade.reward, grade.fast_reward, grade.status) == (1.0, 0.0, 0.0, "timeout")
    assert min(grade.milliseconds or 0 for grade in grades) < 2000
    assert r1_zero_reward_fn(" r </think> <answer> 2/4 </answer>", "1/2", fast=False)["reward"] == 1.0


def test_a_child_killed_from_outside_loses_nobody_a_verdict(fast_pool: GradingPool) -> None:
    for _ in range(3):
        fast_pool.compare([RIGHT] * 8)
        for pid in fast_pool.pids():
            os.kill(pid, signal.SIGKILL)
        assert all(correct(fast_pool.compare([RIGHT] * 200)))


def test_memory_is_limited_and_a_grown_child_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[GradingProcess] = []

    def start(*arguments: Any) -> GradingProcess:
        started.append(GradingProcess(*arguments))
        return started[-1]

    monkeypatch.setattr(grading_pool, "GradingProcess", start)
    with GradingPool(limits=Limits(resident_bytes=1)) as pool:
        for _ in range(2):
            assert correct(pool.compare([RIGHT, WRONG, RIGHT])) == [True, False, True]
    assert len(started) >= 2
    with GradingPool() as pool:
        pool.compare([RIGHT])
        (pid,) = pool.pids()
        if sys.platform == "linux":
            assert resource.prlimit(pid, resource.RLIMIT_AS)[0] == Limits().memory_bytes


def test_a_closed_pool_says_so() -> None:
    pool = GradingPool()
    pool.compare([RIGHT])
    (pid,) = pool.pids()
    pool.close()
    with pytest.raises(RuntimeError, match="make a new one"):
        pool.submit([RIGHT])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ValueError, match="at least 1"):
        GradingPool(0)


def test_a_child_that_cannot_start_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.grading_process.MODULE", "alignment_core.no_such_module")
    with GradingPool() as pool, pytest.raises(HostError, match="does not start"):
        pool.compare([RIGHT])


def test_a_pool_that_is_closed_while_its_child_starts_says_so() -> None:
    with GradingPool() as pool:
        under_way = pool.submit([RIGHT])
        while not pool.pids():
            time.sleep(0.001)
        pool.close()
        with pytest.raises(RuntimeError, match="pool was closed"):
            under_way.result(30)


def test_thorough_grading_without_math_verify_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="install math-verify"):
        GradingPool(mode="thorough")


def test_a_forked_process_makes_its_own_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = grading_pool.shared_pool(1, "fast")
    assert grading_pool.shared_pool(1, "fast") is mine
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert grading_pool.shared_pool(1, "fast") is not mine


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("fast", "pass"),
        ("fast", "os.kill(os.getpid(), signal.SIGKILL)"),
        ("thorough", "pool.submit([HANGS]); time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)"),
    ],
)
def test_no_child_outlives_its_parent(mode: str, ending: str) -> None:
    if mode == "thorough":
        pytest.importorskip("math_verify", reason="thorough grading needs math-verify: install it to run this test")
    script = f"""
        import os, signal, sys, time
        from alignment_core.grading_pool import GradingPool
        from alignment_core.verdicts import Question
        pool = GradingPool(1, {mode!r})
        pool.compare([Question("1", ("1",))] * 8)
        print(*pool.pids(), flush=True)
        HANGS = Question({HANGS.answer!r}, ("4",))
        {ending}
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    (child,) = map(int, ended.stdout.split())
    deadline = time.monotonic() + 10
    while running(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_child_imports_little() -> None:
    script = "import sys, alignment_core.grading_child; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "sympy", "pydantic", "numpy", "math_verify"} & set(told.stdout.split())
