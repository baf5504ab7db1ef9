"""MLflow as a view of the stages' own records: nothing lost by a kill or an outage, nothing doubled by a rerun."""

import json
from pathlib import Path

import pytest

from alignment_core.events import EVENTS, Event
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageSpec
from alignment_core.store import Components
from tasks.tracking import Tracker, TrackingError, pending_marker, tracking_uri


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root for the module: a fresh MLflow database takes seconds."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


def make_spec(key: str) -> StageSpec:
    components = Components(stage="sft", config={}, inputs={}, code={}, versions={})
    return StageSpec(stage="sft", label=f"sft {key}", config={"epochs": 2}, inputs={}, components=components, key=key)


def make_events(began: float) -> list[Event]:
    points = [Event(kind="point", step=n, time=began + n, metrics={"train/loss": 1 / n}) for n in (1, 2, 3)]
    return [*points, Event(kind="rows", step=3, time=began + 3, name="samples", rows=[{"text": "a"}])]


def make_artifact(folder: Path, events: list[Event]) -> Path:
    (folder / "record").mkdir(parents=True, exist_ok=True)
    lines = "".join(event.model_dump_json(exclude_defaults=True) + "\n" for event in events)
    (folder / "record" / EVENTS).write_text(lines)
    return folder


def track(root: Path, spec: StageSpec, artifact: Path, heard: list[Event], digest: str = "d") -> None:
    """One run of the command: it hears `heard`, then the artifact is there."""
    tracker = Tracker(root, "study", "run", {})
    tracker.stage_started(spec)
    for event in heard:
        tracker.stage_event(spec, event)
    tracker.stage_finished(spec, ArtifactRef(stage="sft", key=spec.key, digest=digest), artifact)
    tracker.study_finished("FINISHED", {}, [], {})
    tracker.close()
    assert not tracker.is_pending(spec.key)


def shown(root: Path, key: str) -> tuple[int, list[tuple[int, int]], int]:
    """Active runs of a key; (step, ms) of its points; rows of its table."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(root))
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    assert experiment.artifact_location.startswith((root / "mlruns").as_uri())
    runs = client.search_runs([experiment.experiment_id], f"tags.`alignflow.stage_key` = '{key}'")
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    table = Path(client.download_artifacts(runs[0].info.run_id, "samples.json")).read_text()
    assert runs[0].info.status == "FINISHED"
    return len(runs), [(point.step, point.timestamp) for point in history], len(json.loads(table)["data"])


def test_a_record_that_a_kill_kept_from_mlflow_is_sent_later_and_only_once(root: Path, tmp_path: Path) -> None:
    spec, events = make_spec("killed"), make_events(1000.0)
    artifact = make_artifact(tmp_path / "a", events)
    killed = Tracker(root, "study", "run", {})
    killed.stage_started(spec)
    for event in [*events[:2], Event(kind="checkpoint", step=2, time=1002.0)]:
        killed.stage_event(spec, event)
    killed.close()  # two of three points have arrived; the stage's end never will
    assert killed.is_pending("killed")
    expected = (1, [(1, 1001000), (2, 1002000), (3, 1003000)], 1)
    for _ in range(2):
        track(root, spec, artifact, heard=[])
        assert shown(root, "killed") == expected


def test_a_stage_computed_anew_replaces_its_points(root: Path, tmp_path: Path) -> None:
    spec, old, new = make_spec("anew"), make_events(1000.0), make_events(4_000_000_000.0)
    track(root, spec, make_artifact(tmp_path / "a", old), heard=old)
    track(root, spec, make_artifact(tmp_path / "b", new), heard=new, digest="e")
    assert shown(root, "anew") == (1, [(n, (4_000_000_000 + n) * 1000) for n in (1, 2, 3)], 1)


def test_a_resumed_stage_keeps_its_run(root: Path, tmp_path: Path) -> None:
    spec, events = make_spec("resumed"), make_events(1000.0)
    broken = Tracker(root, "study", "run", {})
    broken.stage_started(spec)
    for event in [events[0], Event(kind="checkpoint", step=1, time=1001.0)]:
        broken.stage_event(spec, event)
    broken.stage_failed(spec)
    broken.close()
    track(root, spec, make_artifact(tmp_path / "a", events), heard=events)
    assert shown(root, "resumed") == (1, [(1, 1001000), (2, 1002000), (3, 1003000)], 1)


def test_an_outage_is_told_at_the_end_and_leaves_the_stage_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(tmp_path, "study", "run", {})
    tracker.stage_started(make_spec("lost"))
    with pytest.raises(TrackingError, match=r"MLflow at http://127\.0\.0\.1:9 could not be written"):
        tracker.close()
    assert pending_marker(tmp_path, "lost").exists()
