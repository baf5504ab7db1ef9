"""One stage alone: computed once, shared, resumed, recorded."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import Config
from alignment_core.stage import Event, StageSpec, read_events, run_stage
from alignment_core.store import Components, Store


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


def count(fail_at: int | None = None) -> Callable[..., None]:
    """A stage that saves at every second step and may break."""

    def run(config: DemoStage, inputs: dict[str, Path], output: Path, run: Any) -> None:
        latest = run.latest_checkpoint()
        done = int((latest / "count.txt").read_text()) if latest else 0
        for step in range(done + 1, config.steps + 1):
            if step == fail_at:
                raise RuntimeError("broken")
            run.emit(step, {"train/loss": 1.0 / step}, total=config.steps)
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
    monkeypatch.setattr("alignment_core.stage.time.monotonic", lambda: float(next(clock)))
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
