"""What the tasks add around a stage: which artifact counts, what enters a key, what is told of a failure."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from alignment_core.manifest import ManifestDraft, Producer
from alignment_core.records import ArtifactRef
from alignment_core.stage import make_spec
from alignment_core.stage_config import ImportModelStage, ReportStage
from flows.settings import load_config
from tasks import evaluation, models, stages
from tasks.progress import LogListener
from tasks.tracker import TrackingError
from tasks.workspace import Workspace, open_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace that no stage has run in."""
    with open_workspace(str(tmp_path / "root"), "study", "run") as opened:
        return opened


class RecordedCall:
    """Stands in for Prefect's task: answers with an old record of its own."""

    def __init__(self, answer: ArtifactRef) -> None:
        self.answer = answer
        self.options: dict[str, Any] = {}

    def with_options(self, **options: Any) -> Callable[..., dict[str, Any]]:
        self.options = options
        return lambda *_arguments: self.answer.model_dump()


def publish(workspace: Workspace, text: str) -> ArtifactRef:
    """The artifact of an import_model stage, as if it had run."""
    config = ImportModelStage(source="some/model")
    spec = make_spec("import_model", config, {}, "base model")
    source = workspace.store.root / ".work" / "x"
    source.mkdir(parents=True)
    (source / "identity.json").write_text(text)
    producer = Producer(started=0.0, seconds=1.0, host="here")
    return workspace.store.publish(
        source,
        ManifestDraft(
            stage="import_model",
            key=spec.key,
            label="base model",
            components=spec.components,
            parents={},
            producer=producer,
        ),
    )


def test_the_store_is_believed_where_an_old_record_of_prefect_differs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = publish(workspace, "second attempt")
    task = RecordedCall(there.model_copy(update={"digest": "of the first attempt"}))
    monkeypatch.setattr(stages, "stage_task", task)
    config = ImportModelStage(source="some/model")
    assert stages.run_cached(workspace, "import_model", config, {}, "base model") == there
    assert task.options["refresh_cache"] is False


def test_a_stage_whose_record_did_not_reach_mlflow_is_asked_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = publish(workspace, "whole")
    task = RecordedCall(there)
    monkeypatch.setattr(stages, "stage_task", task)
    monkeypatch.setattr(workspace.tracker, "is_pending", lambda key: key == there.key)
    stages.run_cached(workspace, "import_model", ImportModelStage(source="some/model"), {}, "base model")
    assert task.options["refresh_cache"] is True
    assert workspace.outcomes["base model"].reason == "its record had not reached MLflow"


def test_the_report_feels_a_training_run_that_gave_the_same_weights(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A curve is in the record, not in the digest: another `validate_every` must draw another page."""
    drawn: list[ReportStage] = []

    def capture(workspace: Workspace, stage: str, config: ReportStage, inputs: Any, label: str) -> ArtifactRef:
        drawn.append(config)
        return ArtifactRef(stage=stage, key="r", digest="r")

    monkeypatch.setattr(evaluation, "run_cached", capture)
    config = load_config("tiny")
    for key in ("every 50 steps", "every 10 steps"):
        runs = {"sft/full": ArtifactRef(stage="sft", key=key, digest="same weights")}
        evaluation.write_report(workspace, config, [], runs, {})
    assert drawn[0].key_settings() != drawn[1].key_settings()


def test_a_moved_checkpoint_is_imported_from_where_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ImportModelStage] = []
    monkeypatch.setattr(models, "run_cached", lambda _workspace, _stage, config, *_rest: asked.append(config))
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "config.json").write_text("{}")
    (old / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros(2, dtype=np.float32)}, old / "model.safetensors")
    workspace: Any = None
    models.import_checkpoint(workspace, str(old), None, "base model")
    old.rename(new)
    monkeypatch.chdir(tmp_path)
    models.import_checkpoint(workspace, "new", None, "base model")
    assert [one.source for one in asked] == [str(old), str(new)]
    assert asked[0].content == asked[1].content
    assert asked[0].key_settings() != asked[1].key_settings()


def test_a_change_in_the_middle_of_the_weights_is_another_model(tmp_path: Path) -> None:
    weights = bytearray(8 << 20)
    (tmp_path / "model.safetensors").write_bytes(weights)
    before = models.folder_identity(tmp_path)
    weights[3 << 20 : 4 << 20] = b"\1" * (1 << 20)
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert models.folder_identity(tmp_path) != before


def test_an_mlflow_outage_does_not_hide_why_the_study_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outage(_patience: float | None = None) -> None:
        raise TrackingError("MLflow could not be written")

    def study() -> None:
        with open_workspace(str(tmp_path), "study", "run") as workspace:
            monkeypatch.setattr(workspace.tracker, "close", outage)
            raise ValueError("none of 8 samples is right")

    with pytest.raises(ValueError, match="none of 8 samples") as caught:
        study()
    assert caught.value.__notes__ == ["MLflow could not be written"]


def test_a_failed_stage_says_where_its_traceback_lies(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setattr(stages, "run_stage", broken)
    monkeypatch.setattr(workspace, "listener", LogListener())
    monkeypatch.setattr(
        workspace, "tracker", SimpleNamespace(stage_started=print, stage_failed=lambda _spec, stopped: None)
    )
    spec = make_spec("import_model", ImportModelStage(source="some/model"), {}, "base model")
    with pytest.raises(ValueError, match="is shorter") as caught:
        stages.stage_task.fn(spec, workspace, "first run")
    (note,) = caught.value.__notes__
    assert "base model" in note
    assert "in broken" in Path(note.rsplit("traceback: ", 1)[1]).read_text()
