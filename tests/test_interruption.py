"""Signals while a stage runs: saved at the next boundary, handed on to whoever handled them before."""

import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment_core import disk
from alignment_core.config import Config
from alignment_core.events import Event
from alignment_core.interruption import Interrupted, Interruption, exit_code_of, interruptible, stopping_on_sigterm
from alignment_core.manifest import Components
from alignment_core.operation import CHECKPOINT_SECONDS, checkpoint_period
from alignment_core.stage import StageSpec, run_stage
from alignment_core.stage_process import main
from alignment_core.store import Store


class CountStage(Config):
    """Count to three."""


COMPONENTS = Components(stage="count", config={}, inputs={}, code={}, versions={})
SPEC = StageSpec(stage="count", label="count", config={}, inputs={}, components=COMPONENTS, key=COMPONENTS.key())


@pytest.fixture(autouse=True)
def _handlers_are_as_before() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def install(monkeypatch: pytest.MonkeyPatch, signals: dict[int, int], saves: bool = True) -> None:
    """Stage `count`: three steps; it gets `signals[step]` in the middle of that step."""

    def run(config: CountStage, inputs: dict[str, Path], output: Path, run: Any) -> None:
        latest = run.latest_checkpoint()
        done = int((latest / "n").read_text()) if latest else 0
        for step in range(done + 1, 4):
            if step in signals:
                os.kill(os.getpid(), signals[step])
            run.emit(step, {"train/loss": 1.0 / step})
            if saves and run.checkpoint_due() and step < 3:
                run.save_checkpoint(step, lambda folder, step=step: (folder / "n").write_text(str(step)))
        (output / "result").write_text("3")

    module = types.ModuleType("alignment_core.stages.count")
    module.CONFIG, module.run = CountStage, run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "alignment_core.stages.count", module)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_boundary_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store, heard = Store(tmp_path), list[Event]()
    install(monkeypatch, {2: number})
    with pytest.raises(Interrupted) as caught:
        run_stage(store, SPEC, heard.append)
    assert (caught.value.kept, caught.value.exit_code) == ("saved after step 2", 128 + number)
    assert [event.step for event in heard if event.kind == "checkpoint"] == [2]
    install(monkeypatch, {})
    outcome = run_stage(store, SPEC)
    assert (outcome.how, store.manifest("count", SPEC.key).producer.resumed_from_step) == ("resumed", 2)


def test_without_a_boundary_to_come_it_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    install(monkeypatch, {2: signal.SIGTERM}, saves=False)
    heard: list[Event] = []
    with pytest.raises(Interrupted):
        run_stage(store, SPEC, heard.append)
    assert [event.step for event in heard] == [1]


def test_what_finishes_before_a_boundary_comes_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    install(monkeypatch, {3: signal.SIGTERM})
    with pytest.raises(Interrupted, match="had finished"):
        run_stage(store, SPEC)
    assert run_stage(store, SPEC).how == "cached"


def test_the_handler_from_before_gets_the_signal_once_the_stage_has_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfTheWorker(BaseException):
        """What a worker's own handler raises."""

    def handler(_number: int, _frame: object) -> None:
        raise OfTheWorker

    install(monkeypatch, {2: signal.SIGTERM})
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(OfTheWorker) as caught:
            run_stage(Store(tmp_path), SPEC)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert exit_code_of(caught.value) == 143
    assert list(tmp_path.glob(".work/*/checkpoints/00000002/complete.json"))


def test_a_second_signal_does_not_wait_but_an_echo_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("alignment_core.interruption.time.monotonic", lambda: now[0])
    interruption = Interruption()
    interruption.patient = True
    interruption.receive(signal.SIGTERM, None)
    now[0] += 0.5
    interruption.receive(signal.SIGTERM, None)
    now[0] += 5
    with pytest.raises(Interrupted):
        interruption.receive(signal.SIGTERM, None)


def test_in_another_thread_nothing_is_handled() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signum is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_commands_sigterm_closes_what_is_open() -> None:
    closed = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            closed.append(True)

    with pytest.raises(Interrupted) as caught, stopping_on_sigterm():
        work()
    assert (closed, caught.value.exit_code) == ([True], 143)


def test_the_exit_code_is_found_behind_other_errors() -> None:
    error = ConnectionError("the server is gone")
    error.__context__ = Interrupted(signal.SIGTERM)
    assert [exit_code_of(one) for one in (error, KeyboardInterrupt(), ValueError(), None)] == [143, 130, None, None]


def test_checkpoint_seconds_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNFLOW_CHECKPOINT_SECONDS", raising=False)
    assert checkpoint_period() == CHECKPOINT_SECONDS
    monkeypatch.setenv("ALIGNFLOW_CHECKPOINT_SECONDS", "2.5")
    assert checkpoint_period() == 2.5
    for text in ("soon", "-1", "nan"):
        monkeypatch.setenv("ALIGNFLOW_CHECKPOINT_SECONDS", text)
        with pytest.raises(ValueError, match="is no number of seconds"):
            checkpoint_period()


def test_a_disk_full_at_the_manifest_publishes_nothing_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    install(monkeypatch, {})
    with monkeypatch.context() as patched:

        def full(path: Path, text: str) -> None:
            raise OSError(28, "No space left on device", str(path))

        patched.setattr("alignment_core.store.write_durably", full)
        with pytest.raises(disk.DiskFullError, match=r"^the disk at .* is full .*Free space there"):
            run_stage(store, SPEC, checkpoint_seconds=0)
    assert store.lookup("count", SPEC.key).status == "missing"
    outcome = run_stage(store, SPEC)
    assert (outcome.how, store.manifest("count", SPEC.key).producer.resumed_from_step) == ("resumed", 2)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "x"), True),
        (OSError(122, "x"), True),
        (OSError(2, "No space left on device"), False),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("other"), False),
    ],
)
def test_a_full_disk_is_recognised_in_native_errors_too(error: Exception, full: bool) -> None:
    assert disk.is_disk_full(error) == full


def test_the_ledger_survives_a_line_that_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    (tmp_path / ".ledger.jsonl").write_text('{"stage": "gr')
    install(monkeypatch, {})
    run_stage(store, SPEC)
    assert [line["key"] for line in store.ledger()] == [SPEC.key]


def test_a_spec_made_by_other_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    components = Components(stage="analyze", config={}, inputs={}, code={"alignment_core.x.y": "1"}, versions={})
    spec = SPEC.model_copy(update={"stage": "analyze", "components": components, "key": components.key()})
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    assert main([str(tmp_path / "spec.json"), str(tmp_path)]) == 1
    assert "was made elsewhere (code changed" in capsys.readouterr().err
    assert main([str(tmp_path / "none.json"), str(tmp_path)]) == 1
    assert "No such file" in capsys.readouterr().err
