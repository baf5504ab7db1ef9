"""One stage alone: computed once, shared, resumed, recorded."""

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment_core.config import Config
from alignment_core.events import Event, read_events
from alignment_core.failures import HostError
from alignment_core.journal import undisturbed
from alignment_core.manifest import Components
from alignment_core.stage import StageSpec, run_stage
from alignment_core.store import Store


class DemoStage(Config):
    """Count to `steps`."""

    steps: int = 4


def spec(**config: Any) -> StageSpec:
    """A spec of the stand-in stage `demo`."""
    settings = DemoStage(**config).model_dump()
    components = Components(stage="demo", config=settings, inputs={}, code={}, versions={})
    return StageSpec(
        stage="demo", label="demo", config=settings, inputs={}, components=components, key=components.key()
    )


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Make a function the `run` of stage `demo`."""

    def make(run: Callable[..., None]) -> None:
        module = types.ModuleType("alignment_core.stages.demo")
        module.CONFIG = DemoStage  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "alignment_core.stages.demo", module)

    return make


def count(fail_at: int | None = None, accuracies: dict[int, float] | None = None) -> Callable[..., None]:
    """A stage that saves at every second step and may break; accuracies: validation after some steps."""

    def run(config: DemoStage, inputs: dict[str, Path], output: Path, run: Any) -> None:
        latest = run.latest_checkpoint()
        done = int((latest / "count.txt").read_text()) if latest else 0
        for step in range(done + 1, config.steps + 1):
            if step == fail_at:
                raise RuntimeError("broken")
            scored = {"eval/accuracy": accuracies[step]} if accuracies and step in accuracies else {}
            run.emit(step, {"train/loss": 1.0 / step, **scored}, total=config.steps)
            if step % 2 == 0:
                run.save_checkpoint(step, lambda folder, step=step: (folder / "count.txt").write_text(str(step)))
        (output / "result.txt").write_text(str(config.steps))

    return run


def test_runs_once_then_is_shared(tmp_path: Path, install: Any) -> None:
    store = Store(tmp_path)
    install(count())
    first = run_stage(store, spec())
    install(count(fail_at=1))
    second = run_stage(store, spec())
    assert (first.how, second.how, first.ref == second.ref) == ("ran", "cached", True)
    assert [event.step for event in read_events(store.path(first.ref))] == [1, 2, 3, 4]
    assert not list((tmp_path / ".work").iterdir())


def test_resumes_after_the_last_checkpoint_with_one_point_per_step(tmp_path: Path, install: Any) -> None:
    store = Store(tmp_path)
    install(count(fail_at=4))
    with pytest.raises(RuntimeError, match="broken"):
        run_stage(store, spec(steps=6))
    assert store.lookup("demo", spec(steps=6).key).status == "missing"
    heard: list[Event] = []
    install(count())
    outcome = run_stage(store, spec(steps=6), heard.append)
    assert outcome.how == "resumed"
    manifest = store.manifest("demo", outcome.ref.key)
    assert manifest.producer.resumed_from_step == 2
    assert [event.step for event in read_events(store.path(outcome.ref))] == [1, 2, 3, 4, 5, 6]
    # Whoever listens hears what was kept again, marked durable, before anything new.
    assert [(event.kind, event.step) for event in heard][:3] == [("point", 1), ("point", 2), ("checkpoint", 2)]
    assert [event.step for event in heard if event.kind == "point"] == [1, 2, 3, 4, 5, 6]


def test_torch_out_of_memory_is_told_wherever_it_is_met(tmp_path: Path, install: Any) -> None:
    def run(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    install(run)
    with pytest.raises(MemoryError, match="out of memory: take a smaller model"):
        run_stage(Store(tmp_path), spec())


def test_without_a_checkpoint_it_starts_over(tmp_path: Path, install: Any) -> None:
    store = Store(tmp_path)
    install(count(fail_at=2))
    with pytest.raises(RuntimeError):
        run_stage(store, spec())
    install(count())
    outcome = run_stage(store, spec())
    assert outcome.how == "ran"
    assert [event.step for event in read_events(store.path(outcome.ref))] == [1, 2, 3, 4]


def test_a_half_written_checkpoint_is_ignored(tmp_path: Path, install: Any) -> None:
    store = Store(tmp_path)
    install(count(fail_at=4))
    with pytest.raises(RuntimeError):
        run_stage(store, spec(steps=6))
    work = next((tmp_path / ".work").iterdir())
    (work / "checkpoints" / "00000003").mkdir()
    (work / "checkpoints" / "00000003" / "count.txt").write_text("3")
    install(count())
    run_stage(store, spec(steps=6))
    assert store.manifest("demo", spec(steps=6).key).producer.resumed_from_step == 2


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "count.txt").write_text("5"), "count.txt was changed"),
        (lambda folder: (folder / "count.txt").write_text("12"), "count.txt has 2 bytes, not 1"),
        (lambda folder: (folder / "count.txt").unlink(), "count.txt is missing"),
        (lambda folder: (folder / "complete.json").write_text("{"), "complete.json is unreadable"),
    ],
)
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_serves(
    tmp_path: Path, install: Any, spoil: Callable[[Path], object], told: str
) -> None:
    store, heard = Store(tmp_path), list[Event]()
    install(count(fail_at=5, accuracies={1: 0.9, 3: 0.1}))  # of steps 2 and 4, the first is the best one and is kept
    with pytest.raises(RuntimeError):
        run_stage(store, spec(steps=6))
    spoil(next(tmp_path.glob(".work/*/checkpoints/00000004")))
    install(count())
    outcome = run_stage(store, spec(steps=6), heard.append)
    assert store.manifest("demo", outcome.ref.key).producer.resumed_from_step == 2
    damage = f"the checkpoint of step 4 is damaged and was removed: {told}"
    assert damage in [event.name for event in heard]
    assert (store.path(outcome.ref) / "result.txt").read_text() == "6"


def test_a_record_that_was_changed_is_not_gone_on_from(tmp_path: Path, install: Any) -> None:
    store, heard = Store(tmp_path), list[Event]()
    install(count(fail_at=4))
    with pytest.raises(RuntimeError):
        run_stage(store, spec())
    events = next(tmp_path.glob(".work/*/output/record/events.jsonl"))
    events.write_bytes(b"#" + events.read_bytes()[1:])
    install(count())
    assert run_stage(store, spec(), heard.append).how == "ran"
    assert "the checkpoint of step 2 is damaged and was removed: events.jsonl was changed" in [e.name for e in heard]


@pytest.mark.parametrize("spoil", ["edit", "remove", "another"])
def test_an_input_that_is_not_what_the_key_was_made_of_is_refused(tmp_path: Path, install: Any, spoil: str) -> None:
    store = Store(tmp_path)
    install(count())
    parent = run_stage(store, spec()).ref
    content = store.path(parent) / "result.txt"
    if spoil == "remove":
        content.unlink()
    if spoil == "edit":
        content.write_text("9")
    if spoil == "another":
        parent = parent.model_copy(update={"digest": "0" * 64})
    child = spec(steps=2).model_copy(update={"inputs": {"model": parent}, "key": "child"})
    with pytest.raises(HostError, match=rf"input model \(demo/{parent.key[:12]}\) cannot be used"):
        run_stage(store, child)
    assert store.lookup("demo", "child").ref is None


def test_nothing_is_removed_while_a_stage_runs(tmp_path: Path, install: Any) -> None:
    refused = []

    def run(config: DemoStage, inputs: dict[str, Path], output: Path, run: Any) -> None:
        with pytest.raises(ValueError, match="another command works on") as caught, undisturbed(tmp_path):
            pass
        refused.append(str(caught.value))

    install(run)
    run_stage(Store(tmp_path), spec())
    assert refused


def test_a_record_shorter_than_its_checkpoint_starts_over(tmp_path: Path, install: Any) -> None:
    store = Store(tmp_path)
    install(count(fail_at=4))
    with pytest.raises(RuntimeError):
        run_stage(store, spec())
    next(tmp_path.glob(".work/*/output/record/events.jsonl")).write_bytes(b"")
    install(count())
    outcome = run_stage(store, spec())
    assert outcome.how == "ran"
    assert [event.step for event in read_events(store.path(outcome.ref)) if event.kind == "point"] == [1, 2, 3, 4]


def test_whoever_waits_for_another_process_says_for_whom(tmp_path: Path, install: Any) -> None:
    store, heard = Store(tmp_path), list[Event]()
    (tmp_path / ".locks").mkdir()
    code = (
        "import fcntl, os, sys\n"
        "file = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write('process 7 on there')\n"
        "file.flush()\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()"
    )
    path = str(tmp_path / ".locks" / f"demo-{spec().key}.lock")
    holder = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"

    def hear(event: Event) -> None:
        heard.append(event)
        holder.kill()

    install(count())
    assert run_stage(store, spec(), hear).how == "ran"
    holder.communicate()
    assert heard[0].name == "waits for process 7 on there, which computes the same stage"


def test_content_does_not_depend_on_having_been_cut_off(tmp_path: Path, install: Any) -> None:
    straight, cut = Store(tmp_path / "a"), Store(tmp_path / "b")
    install(count())
    expected = run_stage(straight, spec(steps=6)).ref
    install(count(fail_at=5))
    with pytest.raises(RuntimeError):
        run_stage(cut, spec(steps=6))
    install(count())
    assert run_stage(cut, spec(steps=6)).ref == expected


def test_a_failed_attempt_writes_nothing_more_into_the_record_of_the_next(tmp_path: Path, install: Any) -> None:
    store = Store(tmp_path)
    kept = []

    def broken(config: DemoStage, inputs: dict[str, Path], output: Path, run: Any) -> None:
        kept.append(run)
        run.emit(99, {"train/loss": 1.0})
        raise RuntimeError("broken")

    install(broken)
    with pytest.raises(RuntimeError, match="broken"):
        run_stage(store, spec())
    install(count())
    outcome = run_stage(store, spec())
    kept.clear()  # the first attempt's handle is collected, and must have nothing left to flush
    assert [event.step for event in read_events(store.path(outcome.ref))] == [1, 2, 3, 4]


def test_the_cost_of_a_resumed_stage_includes_the_attempts_before(
    tmp_path: Path, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr("alignment_core.stage_run.time.monotonic", lambda: float(next(clock)))
    store = Store(tmp_path)
    install(count(fail_at=4))
    with pytest.raises(RuntimeError, match="broken"):
        run_stage(store, spec())
    marker = next((tmp_path / ".work").glob("*/checkpoints/*/complete.json")).read_text()
    install(count())
    outcome = run_stage(store, spec())
    seconds = store.manifest("demo", outcome.ref.key).producer.seconds
    assert seconds > json.loads(marker)["seconds"] > 0


def test_a_metric_that_is_not_a_number_does_not_break_the_record(tmp_path: Path, install: Any) -> None:
    def diverge(config: DemoStage, inputs: dict[str, Path], output: Path, run: Any) -> None:
        run.emit(1, {"train/loss": float("nan"), "train/grad_norm": float("inf")})

    install(diverge)
    (event,) = read_events((store := Store(tmp_path)).path(run_stage(store, spec()).ref))
    assert event.metrics["train/loss"] != event.metrics["train/loss"]
    assert event.metrics["train/grad_norm"] == float("inf")
