"""MLflow from the store alone, twice the same; moved and copied roots; what kills left running."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
from mlflow import MlflowClient

from alignment_core import retention
from alignment_core.curves import milestones
from alignment_core.events import Event
from alignment_core.journal import dead_runs, past_runs
from alignment_core.manifest import Components, ManifestDraft, Producer
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageOutcome, StageSpec
from alignment_core.store import Store
from benchmarks.local_servers import free_port, wait_until_healthy
from tasks import workspace as workspace_module
from tasks.rebuild import SETTLED, rebuild
from tasks.recovery import crash_flow_run
from tasks.stages import show_found
from tasks.tracker import TrackingError
from tasks.tracking import RUN_TAG, tracking_uri
from tasks.workspace import Workspace, open_workspace


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


POINTS = [
    Event(kind="point", step=1, time=1001.0, metrics={"train/loss": 1.0, "eval/accuracy": 0.5, "eval/entropy": 2.0}),
    Event(kind="rows", step=1, time=1001.0, name="rollouts", rows=[{"text": "a"}, {"text": "b", "reward": 1}]),
    Event(kind="point", step=2, time=1002.0, metrics={"train/loss": 0.5}),
    Event(kind="point", step=3, time=1003.0, metrics={"train/loss": 0.4, "eval/accuracy": 0.25}),
]


def compute(workspace: Workspace, name: str, parents: dict[str, ArtifactRef]) -> ArtifactRef:
    """What tasks.stages does around a stage, with a stage that is written by hand."""
    components = Components(stage="sft", config={"name": name}, inputs={}, code={}, versions={})
    key = components.key()
    spec = StageSpec(
        stage="sft", label=name, config={"name": name, "keep": 1}, inputs=parents, components=components, key=key
    )
    workspace.reached(name, "sft", key, "asked")
    workspace.tracker.stage_started(spec)
    for event in POINTS:
        workspace.tracker.stage_event(spec, event)
    source = workspace.store.root / ".work" / key
    (source / "record").mkdir(parents=True)
    lines = [event.model_dump_json(exclude_defaults=True) + "\n" for event in POINTS]
    (source / "record" / "events.jsonl").write_text("".join(lines))
    (source / "summary.json").write_text("{}")
    draft = ManifestDraft(
        stage="sft",
        key=key,
        label=name,
        components=components,
        parents=parents,
        producer=Producer(started=1000.0, seconds=5.0, host="here", annotations=workspace.annotations()),
        settings=spec.config,
    )
    ref = workspace.store.publish(source, draft)
    workspace.tracker.stage_finished(spec, ref, workspace.store.path(ref))
    workspace.outcomes[name] = StageOutcome(ref=ref, how="ran", reason="", seconds=5.0)
    workspace.reached(name, "sft", key, "ran")
    return ref


def run_study(root: Path) -> None:
    """Two stages, and a result shown with the study run."""
    with open_workspace(str(root), "demo", "study demo", {"flow": "study", "preset": "demo"}) as workspace:
        first = compute(workspace, "sft/a", {})
        second = compute(workspace, "sft/b", {"model": first})
        workspace.final_metrics["final/sft/b/accuracy"] = 0.25
        workspace.final_artifacts.append(workspace.store.path(second) / "summary.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which a study has run; tests copy it: a fresh MLflow database takes seconds."""
    root = tmp_path_factory.mktemp("made") / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        run_study(root)
    return root


def shown(root: Path, study: str = "demo") -> dict[str, Any]:
    """Everything a person sees of a study in MLflow, without ids and without when it was written there."""
    client = MlflowClient(tracking_uri(root))
    local = tracking_uri(root).startswith("sqlite:")
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    if local:
        assert Path(experiment.artifact_location.removeprefix("file://")) == root / "mlruns" / "artifacts" / study
    runs = client.search_runs([experiment.experiment_id])
    by_id = {run.info.run_id: run.info.run_name for run in runs}
    found = {}
    for run in runs:
        tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.source")}
        tags["mlflow.parentRunId"] = by_id.get(tags.get("mlflow.parentRunId", ""), "")
        history = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        files = {}
        for item in client.list_artifacts(run.info.run_id):
            text = Path(client.download_artifacts(run.info.run_id, item.path)).read_text()
            files[item.path] = _without_ids(text, by_id)
        assert run.info.artifact_uri.startswith((root / "mlruns").as_uri() if local else "mlflow-artifacts:")
        found[run.info.run_name] = (run.info.status, tags, dict(run.data.params), history, files)
    assert len(found) == len(runs)
    return found


def _without_ids(text: str, names: dict[str, str]) -> str:
    for run_id, name in names.items():
        text = text.replace(run_id, name)
    return text


def copied(made: Path, to: Path) -> Path:
    """The root elsewhere, as `cp -a` makes it."""
    shutil.copytree(made, to, copy_function=shutil.copy2)
    return to


def test_a_rebuild_shows_what_was_shown_and_twice_the_same(made: Path, tmp_path: Path) -> None:
    live = shown(made)
    status, tags, params, history, files = live["sft/b"]
    assert (status, params, tags["mlflow.parentRunId"]) == ("FINISHED", {"name": "sft/b", "keep": "1"}, "study demo")
    assert history["train/loss"] == [(1, 1.0), (2, 0.5), (3, 0.4)]
    assert {name: points for name, points in history.items() if name[:4] in {"best", "fina"}} == {
        "best/accuracy": [(1, 0.5)],
        "best/entropy": [(1, 2.0)],
        "best/step": [(1, 1.0)],
        "final/accuracy": [(3, 0.25)],
    }
    assert json.loads(files["rollouts.json"])["data"] == [[1, "a", ""], [1, "b", 1]]
    assert json.loads(live["study demo"][4]["stages.json"])["sft/a"]["run_id"] == "sft/a"
    root = copied(made, tmp_path / "root")
    shutil.rmtree(root / "mlruns")
    for _ in range(2):
        assert str(rebuild(root)) == "1 experiments, 1 study runs, 2 stage runs"
        assert shown(root) == live
    assert len(list((root / "mlruns" / "artifacts" / "demo").iterdir())) == 3  # no files of replaced runs are left
    client = MlflowClient(tracking_uri(root))
    (run,) = client.search_runs([demo(client)], "attributes.run_name = 'sft/a'")
    assert (run.info.start_time, run.info.end_time) == (1_000_000, 1_005_000)
    times = [point.timestamp for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert times == [1_001_000, 1_002_000, 1_003_000]


def find(workspace: Workspace, label: str, ref: ArtifactRef, how: Literal["cached", "ran"] = "cached") -> None:
    """What tasks.stages does around a stage that is there already, or that another study has computed meanwhile."""
    workspace.outcomes[label] = StageOutcome(ref=ref, how=how, reason="same key", seconds=0.0)
    workspace.reached(label, ref.stage, ref.key, how)
    show_found(workspace, label, ref)


def other_study(root: Path, name: str) -> None:
    """A study that finds a stage of the first one under another label, and computes one of its own."""
    (manifest,) = (one for one in Store(root / "data" / "store").manifests() if one.label == "sft/a")
    with open_workspace(str(root), "other", name) as workspace:
        find(workspace, "member/a", manifest.ref())
        find(workspace, "member/twin", manifest.ref())
        if name == "first":
            compute(workspace, "sft/own", {"model": manifest.ref()})
        else:
            assert workspace.tracker._thread is None, "nothing is new: MLflow is not even asked"


def test_a_study_shows_what_it_found_in_another_beside_its_own(made: Path, tmp_path: Path) -> None:
    root = copied(made, tmp_path / "root")
    rebuild(root)
    before = shown(root)["sft/a"]
    other_study(root, "first")
    live = shown(root, "other")
    assert set(live) == {"first", "member/a", "sft/own"}
    status, tags, params, history, files = live["member/a"]
    assert (status, params, history, files) == (before[0], *before[2:])
    assert tags["mlflow.parentRunId"] == "first"
    other_study(root, "second")
    assert shown(root, "other") == live
    assert shown(root)["sft/a"] == before
    with open_workspace(str(root), "third", "attached") as workspace:
        (manifest,) = (one for one in workspace.store.manifests() if one.label == "sft/a")
        find(workspace, "member/waited for", manifest.ref(), "ran")
    assert set(shown(root, "third")) == {"attached", "member/waited for"}
    assert str(rebuild(root)) == "3 experiments, 4 study runs, 5 stage runs"
    assert shown(root, "other") == live
    client = MlflowClient(tracking_uri(root))
    (run,) = client.search_runs([demo(client, "other")], "attributes.run_name = 'member/a'")
    assert (run.info.start_time, run.info.end_time) == (1_000_000, 1_005_000)


def test_what_an_outage_kept_from_a_study_is_shown_by_its_next_start(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(made, tmp_path / "root")
    rebuild(root)
    manifest = next(iter(Store(root / "data" / "store").manifests()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALIGNFLOW_MLFLOW_WAIT", "0.2")
    for _ in range(2):
        with pytest.raises(TrackingError), open_workspace(str(root), "other", "cut off") as workspace:
            find(workspace, manifest.label, manifest.ref())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with open_workspace(str(root), "other", "again") as workspace:
        find(workspace, manifest.label, manifest.ref())
    assert shown(root, "other")[manifest.label][0] == "FINISHED"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A tracking server that keeps the files, too."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--serve-artifacts"]
    command += ["--artifacts-destination", str(tmp_path / "files")]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", 120)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rebuild_on_a_tracking_server_shows_what_was_shown(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    root = tmp_path / "root"
    run_study(root)
    live = shown(root)
    assert live["sft/a"][0] == "FINISHED"
    client = MlflowClient(server)
    client.create_run(client.create_experiment("theirs"), run_name="my notes")
    before = shown_ids(client)
    assert str(rebuild(root)) == "1 experiments, 1 study runs, 2 stage runs"
    theirs = client.get_experiment_by_name("theirs")
    assert theirs is not None
    assert len(before & shown_ids(client)) == 1  # that of the others; all of ours are new
    client.delete_experiment(theirs.experiment_id)
    assert shown(root) == live


def demo(client: MlflowClient, name: str = "demo") -> str:
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return experiment.experiment_id


def test_runs_of_others_are_never_replaced(made: Path, tmp_path: Path) -> None:
    root = copied(made, tmp_path / "root")
    client = MlflowClient(tracking_uri(root))
    client.create_run(client.create_experiment("theirs"), run_name="my notes")
    before = shown_ids(client)
    with pytest.raises(ValueError, match=r"the run 'my notes'.* not of this root: nothing was changed"):
        rebuild(root)
    assert shown_ids(client) == before


def shown_ids(client: MlflowClient) -> set[str]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_id for run in client.search_runs(experiments)}


def test_a_copied_root_rebuilds_and_writes_nothing_into_the_old_place(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = sorted(path.relative_to(made) for path in made.rglob("*"))
    root = copied(made, tmp_path / "elsewhere")
    assert (root / "data" / "store" / SETTLED).read_text() == str(made)
    with open_workspace(str(root), "demo", "study demo again") as workspace:
        compute(workspace, "sft/c", {})
    assert f"{root} was moved or copied from {made}: MLflow is rebuilt" in caplog.text
    assert set(shown(root)) == {"sft/a", "sft/b", "sft/c", "study demo", "study demo again"}
    assert sorted(path.relative_to(made) for path in made.rglob("*")) == old
    caplog.clear()
    with open_workspace(str(root), "demo", "study demo, third"):
        pass
    assert caplog.text == ""


def test_a_copied_root_of_an_older_version_is_noticed_too(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copied(made, tmp_path / "elsewhere")
    (root / "data" / "store" / SETTLED).unlink()
    shutil.rmtree(root / "data" / "store" / ".journal")
    with open_workspace(str(root), "demo", "study demo"):
        pass
    assert f"moved or copied from {made}" in caplog.text
    client = MlflowClient(tracking_uri(root))
    assert {run.info.run_name for run in client.search_runs([demo(client, "recovered")])} == {"sft/a", "sft/b"}


def killed_study(root: Path) -> None:
    """A process that dies in the middle of a stage, with its runs open in MLflow."""
    code = (
        "import os, sys; from pathlib import Path; sys.path[:0] = [sys.argv[2]]\n"
        "from test_rebuild import *\n"
        "with open_workspace(sys.argv[1], 'demo', 'killed study') as workspace:\n"
        "    components = Components(stage='sft', config={'name': 'cut'}, inputs={}, code={}, versions={})\n"
        "    spec = StageSpec(stage='sft', label='cut', config={}, inputs={}, components=components, key='cut')\n"
        "    workspace.tracker.stage_started(spec)\n"
        "    workspace.tracker._put(lambda: os._exit(9))\n"
        "    workspace.tracker._thread.join()\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(root), str(Path(__file__).parent)], capture_output=True)
    assert child.returncode == 9, child.stderr.decode()


def test_runs_left_running_by_a_kill_are_closed_by_the_next_start(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(made, tmp_path / "root")
    killed_study(root)
    assert {name: entry[0] for name, entry in shown(root).items() if entry[0] != "FINISHED"} == {
        "killed study": "RUNNING",
        "cut": "RUNNING",
    }
    asked: list[str] = []
    monkeypatch.setattr(workspace_module, "crash_flow_run", lambda flow_run, _message: asked.append(flow_run))
    with open_workspace(str(root), "demo", "next study"):
        pass
    after = shown(root)
    assert (after["killed study"][0], after["cut"][0]) == ("KILLED", "KILLED")
    assert "next study" not in after  # it computed nothing, so it has no run
    assert asked == []  # the killed one was no flow run
    store = Store(root / "data" / "store")
    assert dead_runs(store.root) == []
    assert [run.ended.status for run in past_runs(store.root) if run.ended] == ["FINISHED", "KILLED", "FINISHED"]
    assert after["killed study"][1][RUN_TAG] == after["cut"][1][RUN_TAG]
    assert retention.collect(store, 0, dry_run=True) == []


def test_a_curve_comes_to_its_last_and_its_best_point() -> None:
    ties = [
        Event(kind="point", step=n, time=n, metrics={"eval/accuracy": value}) for n, value in enumerate((0.1, 0.4, 0.4))
    ]
    assert [(event.step, event.metrics) for event in milestones(ties)] == [
        (2, {"final/accuracy": 0.4}),
        (1, {"best/accuracy": 0.4, "best/step": 1.0}),
    ]
    assert milestones([Event(kind="point", step=1, time=1.0, metrics={"train/loss": 1.0})]) == []


@pytest.mark.slow
def test_a_flow_run_left_running_is_crashed_and_a_finished_one_left_alone() -> None:
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.states import Completed, Running
    from prefect.testing.utilities import prefect_test_harness

    @flow
    def study() -> None:
        """Only its runs are wanted."""

    @task
    def stage() -> None:
        """Only its runs are wanted."""

    with prefect_test_harness(server_startup_timeout=90), get_client(sync_client=True) as client:
        dead, done = (client.create_flow_run(study, state=state()) for state in (Running, Completed))
        inner = client.create_task_run(stage, dead.id, "0", state=Running())
        assert [crash_flow_run(str(one), "died") for one in (dead.id, done.id, uuid4())] == [True, False, False]
        states = [client.read_flow_run(one.id).state for one in (dead, done)]
        states.append(client.read_task_run(inner.id).state)
        assert [state and state.type.value for state in states] == ["CRASHED", "COMPLETED", "CRASHED"]
        assert crash_flow_run(str(dead.id), "died") is False
