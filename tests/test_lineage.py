"""What MLflow shows of where a model comes from: data sets as inputs, models that carry what they reached."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alignment_core.events import Event
from alignment_core.manifest import Components, ManifestDraft, Producer
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageSpec
from tasks.lineage import Dataset, artifact_uri, describe_model
from tasks.rebuild import rebuild
from tasks.tracking import Scribe, connect, tracking_uri
from tasks.workspace import Workspace, open_workspace

FINAL = [
    Event(kind="point", step=1, time=1001.0, metrics={"train/loss": 1.0, "eval/accuracy": 0.25}),
    Event(kind="point", step=2, time=1002.0, metrics={"train/loss": 0.5, "eval/accuracy": 0.5}),
]
GRADED = [
    Event(kind="point", step=4, time=1003.0, metrics={"grade/accuracy": 0.5}),
    Event(kind="point", step=8, time=1004.0, metrics={"eval/test/accuracy": 0.625, "eval/test/format_rate": 1.0}),
]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "ALIGNFLOW_STORE", "ALIGNFLOW_SYSTEM_METRICS"):
        monkeypatch.setenv(name, "")


def compute(
    workspace: Workspace,
    stage: str,
    label: str,
    inputs: dict[str, ArtifactRef],
    points: list[Event] = [],  # noqa: B006
    **settings: Any,
) -> ArtifactRef:
    """A stage whose artifact is written by hand; one that trains holds a model."""
    config = {"label": label, **settings}
    components = Components(stage=stage, config={"label": label}, inputs={}, code={}, versions={})
    key = components.key()
    spec = StageSpec(stage=stage, label=label, config=config, inputs=inputs, components=components, key=key)
    notes = {**workspace.annotations(), "prefect_url": f"http://prefect/runs/task-run/{label}"}
    workspace.tracker.stage_started(spec, notes)
    source = workspace.store.root / ".work" / key
    (source / "record").mkdir(parents=True)
    lines = [event.model_dump_json(exclude_defaults=True) + "\n" for event in points]
    (source / "record" / "events.jsonl").write_text("".join(lines))
    (source / "content.txt").write_text(label)
    if stage in {"pretrain", "sft"}:
        (source / "model").mkdir()
        (source / "model" / "model.safetensors").write_text(label)
    started = 1000.0 + sum(1 for _ in workspace.store.manifests())
    producer = Producer(started=started, seconds=5.0, host="here", annotations=notes)
    draft = ManifestDraft(
        stage=stage,
        key=key,
        label=label,
        components=components,
        parents=inputs,
        producer=producer,
        settings=config,
    )
    ref = workspace.store.publish(source, draft)
    workspace.tracker.stage_finished(spec, ref, workspace.store.path(ref))
    return ref


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ArtifactRef]]:
    """A model, problems, an SFT run, and the evaluation of its model."""
    root = tmp_path_factory.mktemp("lineage")
    settings = {"name": "demo", "data": {"kind": "gsm8k"}, "long": "x" * 9000}
    refs: dict[str, ArtifactRef] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        with open_workspace(str(root), "demo", "study demo", {"flow": "study"}, settings) as workspace:
            refs["base"] = compute(workspace, "pretrain", "base model", {}, FINAL[:0])
            refs["problems"] = compute(workspace, "prepare", "prepare", {}, data={"kind": "gsm8k"})
            refs["traces"] = compute(workspace, "filter", "filter traces", {"problems": refs["problems"]})
            inputs = {"model": refs["base"], "examples": refs["traces"], "problems": refs["problems"]}
            refs["sft"] = compute(workspace, "sft", "sft/64/raw.1", inputs, FINAL)
            inputs = {"model": refs["sft"], "problems": refs["problems"]}
            refs["sample"] = compute(workspace, "sample", "sample", inputs, split="test")
            refs["grade"] = compute(workspace, "grade", "grade", {"completions": refs["sample"]}, GRADED, split="test")
    return root, refs


def view(root: Path) -> dict[str, Any]:
    """Runs and models, by name, without what MLflow calls them."""
    client = connect(tracking_uri(root))
    (experiment,) = (one for one in client.search_experiments() if one.name != "Default")
    models = {one.model_id: one for one in client.search_logged_models([experiment.experiment_id])}
    runs = {}
    for found in client.search_runs([experiment.experiment_id]):
        run = client.get_run(found.info.run_id)
        datasets = sorted(
            (one.dataset.name, one.dataset.digest, one.tags[0].value) for one in run.inputs.dataset_inputs
        )
        sources = sorted({one.dataset.source for one in run.inputs.dataset_inputs})
        reads = [models[one.model_id].name for one in run.inputs.model_inputs]
        makes = [models[one.model_id].name for one in run.outputs.model_outputs]
        tags = {name: value for name, value in sorted(run.data.tags.items()) if name.startswith("alignflow.")}
        metrics = dict(sorted(run.data.metrics.items()))
        runs[run.info.run_name] = {"tags": tags, "params": run.data.params, "metrics": metrics} | {
            "datasets": datasets,
            "sources": sources,
            "reads": reads,
            "makes": makes,
        }
    shown = {
        one.name: {"params": one.params, "status": one.status, "tags": one.tags}
        | {"metrics": sorted((metric.key, metric.step, metric.value) for metric in one.metrics or [])}
        for one in sorted(models.values(), key=lambda one: str(one.name))
    }
    assert len(shown) == len(models)
    return {"runs": runs, "models": shown}


def test_runs_tell_their_place_their_data_and_their_models(study: tuple[Path, dict[str, ArtifactRef]]) -> None:
    root, refs = study
    runs = view(root)["runs"]
    problems = refs["problems"].digest[:36]
    assert runs["sft/64/raw.1"]["datasets"] == [
        ("filter traces", refs["traces"].digest[:36], "training"),
        ("gsm8k problems", problems, "validation"),
    ]
    assert runs["sample"]["datasets"] == [("gsm8k test", problems, "sampling")]
    assert runs["grade"]["datasets"] == [("gsm8k test", problems, "evaluation")]
    place = f"{(root / 'data' / 'store').as_uri()}/prepare/{refs['problems'].key}"
    assert runs["grade"]["sources"] == [f'{{"uri": "{place}", "digest": "{refs["problems"].digest}"}}']
    assert (runs["sft/64/raw.1"]["reads"], runs["sft/64/raw.1"]["makes"]) == (["base model"], ["sft-64-raw-1"])
    assert (runs["grade"]["reads"], runs["grade"]["makes"]) == (["sft-64-raw-1"], [])
    tags = runs["sft/64/raw.1"]["tags"]
    assert tags["alignflow.parent_keys"] == ",".join(refs[name].key for name in ("base", "traces", "problems"))
    assert tags["alignflow.prefect_url"] == "http://prefect/runs/task-run/sft/64/raw.1"
    assert tags["alignflow.git_sha"] == runs["study demo"]["tags"]["alignflow.git_sha"] != ""
    params = runs["study demo"]["params"]
    assert (params["data.kind"], len(params["long"])) == ("gsm8k", 6000)


def test_a_model_points_into_the_store_and_carries_what_it_reached(study: tuple[Path, dict[str, ArtifactRef]]) -> None:
    root, refs = study
    models = view(root)["models"]
    model, ref = models["sft-64-raw-1"], refs["sft"]
    assert set(models) == {"base model", "sft-64-raw-1"}
    assert model["params"]["uri"] == f"{(root / 'data' / 'store').as_uri()}/sft/{ref.key}/model"
    assert Path(model["params"]["uri"].removeprefix("file://")).is_dir()
    assert (model["params"]["digest"], model["status"]) == (ref.digest, "READY")
    assert model["metrics"] == [
        ("eval/test/accuracy", 8, 0.625),
        ("eval/test/format_rate", 8, 1.0),
        ("final/accuracy", 2, 0.5),
    ]
    assert not list((root / "mlruns").rglob("*.safetensors"))  # no copy of the weights


def test_a_rebuild_shows_the_same_models_and_inputs(study: tuple[Path, dict[str, ArtifactRef]], tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(study[0], root)
    assert str(rebuild(root)) == "1 experiments, 1 study runs, 6 stage runs"
    before, after = view(study[0]), view(root)
    assert repr(after["models"]).replace(str(root), str(study[0])) == repr(before["models"])
    assert {name: repr(run).replace(str(root), str(study[0])) for name, run in after["runs"].items()} == {
        name: repr(run) for name, run in before["runs"].items()
    }


def test_studies_that_tell_of_one_stage_at_once_leave_its_inputs_once(tmp_path: Path) -> None:
    """MLflow itself refuses the second of two that log an input which was not there when both looked."""
    read = [
        Dataset(name=f"problems {number}", digest=f"d{number}", uri="file:///x", context="training")
        for number in (1, 2)
    ]
    scribes = [Scribe(tracking_uri(tmp_path), tmp_path, "together") for _ in range(6)]
    run, _ = scribes[0].find_or_create({"stage": "x"}, {"stage": "x"}, "x", None)
    together = threading.Barrier(len(scribes))

    def tell(scribe: Scribe) -> None:
        together.wait()
        scribe.log_inputs(run.info.run_id, read, [])

    with ThreadPoolExecutor(len(scribes)) as threads:
        list(threads.map(tell, scribes))
    shown = scribes[0].client.get_run(run.info.run_id).inputs.dataset_inputs
    assert sorted(one.dataset.digest for one in shown) == ["d1", "d2"]


def test_an_artifact_of_a_shared_store_is_shown_where_all_hosts_find_it(
    study: tuple[Path, dict[str, ArtifactRef]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, refs = study
    ref = refs["sft"]
    monkeypatch.setenv("ALIGNFLOW_STORE", "s3://key:secret@bucket/store/")
    assert artifact_uri(root, ref) == f"s3://***@bucket/store/sft/{ref.key}"
    monkeypatch.setenv("ALIGNFLOW_STORE", "/nfs/store")
    assert artifact_uri(root, ref) == f"file:///nfs/store/sft/{ref.key}"
    gone = ref.model_copy(update={"digest": "0" * 64})
    with open_workspace(str(root), "demo", "again") as workspace:
        assert describe_model(root, workspace.store, gone).name == f"sft {ref.key[:12]}"
