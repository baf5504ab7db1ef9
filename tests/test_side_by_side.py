"""Parts of a study at the same time: results stand in order, errors are told, what is shared is made once."""

import contextvars
import threading
import time
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment_core.experiments import Member
from alignment_core.failures import HostError, MemberError
from alignment_core.records import ArtifactRef
from alignment_core.remote import StoreUnreachable
from alignment_core.stage_config import Comparison
from flows import steps
from flows.methods import Start, Trained
from flows.settings import load_config
from tasks.evaluation import Evaluated
from tasks.side_by_side import WIDTH, run_side_by_side
from tasks.workspace import Workspace, planning_workspace

REF = ArtifactRef(stage="prepare", key="k", digest="d")


def test_calls_run_at_the_same_time_with_the_context_of_who_asks() -> None:
    setting = contextvars.ContextVar("setting", default="")
    setting.set("flow run")
    together, seen = threading.Barrier(3, timeout=60), []

    def call() -> None:
        together.wait()
        seen.append(setting.get())

    run_side_by_side([call] * 3, threading.Event())
    assert seen == ["flow run"] * 3


def test_more_calls_than_threads_all_run() -> None:
    done: list[int] = []
    run_side_by_side([lambda n=n: done.append(n) for n in range(WIDTH + 5)], threading.Event())
    assert sorted(done) == list(range(WIDTH + 5))


def test_a_call_that_fails_leaves_those_under_way_and_no_further_one_begins() -> None:
    together, failed, stop, done = threading.Barrier(WIDTH), threading.Event(), threading.Event(), list[str]()

    def failing(text: str) -> None:
        together.wait(60)
        failed.set()
        raise TypeError(text)

    def long() -> None:
        together.wait(60)
        assert failed.wait(60)
        done.append("whole")

    calls = [*[long] * (WIDTH - 2), lambda: failing("first"), lambda: failing("second"), lambda: done.append("late")]
    with pytest.raises(TypeError, match="first") as caught:
        run_side_by_side(calls, stop)
    assert not stop.is_set()
    assert done.count("whole") == WIDTH - 2
    assert caught.value.__notes__ == ["also: second"]


def test_an_interruption_asks_the_others_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, stopped = threading.Event(), []

    def watch() -> None:
        stop.wait(10)
        stopped.append(True)

    def interrupted(_threads: Any, seconds: float | None) -> None:
        if seconds is None:
            raise KeyboardInterrupt
        _join(_threads, seconds)

    from tasks import side_by_side

    _join = side_by_side._join
    monkeypatch.setattr(side_by_side, "_join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([watch, watch], stop)
    assert stopped == [True, True]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> steps.Study:
    """A study whose members take moments, each another."""
    pause = cycle([0.05, 0.03, 0.0, 0.02, 0.01])

    def train(_workspace: Workspace, member: Member, start: Start) -> Trained:
        time.sleep(next(pause))
        ref = ArtifactRef(stage="sft", key=member.name, digest=member.name)
        comparison = Comparison(name=member.name, method="sft", start=start.evaluation)
        return Trained(ref, [Evaluated(comparison, REF)], {member.name: ref})

    monkeypatch.setattr(steps, "train", train)
    monkeypatch.setattr(steps, "member_start", lambda _study, member: Start(REF, REF, member.start))
    monkeypatch.setattr(steps, "count_traces", lambda *_: 7)
    return steps.Study(planning_workspace(str(tmp_path)), load_config("tiny", {"seeds": [0, 1]}))


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("error", "is_own"),
    [
        (ValueError("none of 8 samples is right: sample more"), True),
        (FloatingPointError("the loss is not finite: lower the rate"), True),
        (MemoryError("out of memory: lower it"), True),
        (MemberError("it holds other weights than the trainer"), True),
        (TypeError("a bug"), False),
        (RuntimeError("TypeError: a bug elsewhere"), False),
        (HostError("has other code: check out the same commit"), False),
        (StoreUnreachable("the shared store cannot be reached"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_member_s_own_failure_leaves_the_rest_and_any_other_ends_the_study(
    error: Exception, is_own: bool, remote: bool, study: steps.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains = steps.train

    def train(workspace: Workspace, member: Member, start: Start) -> Trained:
        if member.name == "sft/128/raw/seed1":
            raise error
        return trains(workspace, member, start)

    monkeypatch.setattr(steps, "train", train)
    if remote:
        dispatcher: Any = SimpleNamespace(stopping=threading.Event())
        study.workspace.dispatcher = dispatcher
    if is_own:
        steps.run_experiments(study)
        assert study.workspace.failures["sft/128/raw/seed1"] is error
        assert "sft/128/filtered/seed1" in study.trained
    else:
        with pytest.raises(type(error)) as caught:
            steps.run_experiments(study)
        assert caught.value is error
        assert not study.workspace.failures


def test_results_stand_in_the_same_order_however_they_come(study: steps.Study) -> None:
    steps.run_experiments(study)
    alone = [item.comparison.name for item in study.evaluations], list(study.runs)
    dispatcher: Any = SimpleNamespace(stopping=threading.Event())
    study.workspace.dispatcher = dispatcher
    together = steps.Study(study.workspace, study.config)
    steps.run_experiments(together)
    assert ([item.comparison.name for item in together.evaluations], list(together.runs)) == alone
    names = alone[0]
    assert len(names) == len(set(names))
    assert names[:4] == ["sft/128/raw/seed0", "sft/128/raw/seed1", "sft/128/filtered/seed0", "sft/128/filtered/seed1"]
    assert names[-2:] == ["grpo/sft/seed0", "grpo/sft/seed1"]
