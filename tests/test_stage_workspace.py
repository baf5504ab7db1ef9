"""A stage as a worker runs it: what its run is nested under, what its manifest says, what an outage leaves."""

from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import ArithmeticConfig, DataConfig
from alignment_core.prompts import read_template
from alignment_core.stage import StageSpec, make_spec
from alignment_core.stage_config import PrepareStage
from tasks import tracking
from tasks.mlflow_format import pending_marker
from tasks.progress import LogListener
from tasks.stages import compute_here
from tasks.tracker import Tracker
from tasks.tracking import connect, tracking_uri
from tasks.workspace import open_stage_workspace

ASKED_BY = {"run": "r1", "study": "tiny"}


def prepare(seed: int) -> StageSpec:
    """A stage that takes a moment."""
    arithmetic = ArithmeticConfig(max_total=7, step_shares=(1.0,), train=8, dev=4, test=4)
    data = DataConfig(kind="arithmetic", arithmetic=arithmetic)
    return make_spec("prepare", PrepareStage(data=data, template=read_template("tiny"), seed=seed), {}, "prepare")


def work(root: Path, spec: StageSpec, parent_run: str) -> None:
    """What the flow `stage` does."""
    with open_stage_workspace(str(root), "tiny", parent_run, ASKED_BY, LogListener()) as workspace:
        compute_here(workspace, spec, "first run")


def refuse(_uri: str) -> None:
    """MLflow's server, away."""
    raise OSError("refused")


def stage_runs(root: Path) -> dict[str, Any]:
    """MLflow's runs of stages, by stage key."""
    client = connect(tracking_uri(root))
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    return {run.data.tags["alignflow.stage_key"]: run for run in runs if "alignflow.stage_key" in run.data.tags}


def test_a_worker_nests_its_run_and_an_outage_is_made_up_for_by_the_next_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = Tracker(tmp_path, "tiny", "study tiny", {})
    parent_run = parent.parent_run()
    first, second = prepare(0), prepare(1)
    with monkeypatch.context() as outage:
        outage.setattr(tracking, "connect", refuse)
        work(tmp_path, first, "")
    assert pending_marker(tmp_path, first.key).exists()
    work(tmp_path, second, parent_run)
    runs = stage_runs(tmp_path)
    assert set(runs) == {first.key, second.key}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent_run}
    assert not pending_marker(tmp_path, first.key).exists()
    store = tmp_path / "data" / "store"
    assert not list((store / ".journal").glob("*")), "the study run is journaled where it runs"
    assert '"study":"tiny"' in (store / "prepare" / first.key / "manifest.json").read_text().replace(" ", "")
    parent.close()


def test_a_run_that_nobody_goes_on_with_is_closed(tmp_path: Path) -> None:
    spec = prepare(0)
    lost = Tracker(tmp_path, "tiny", "", {}, parent_run="")
    lost.stage_started(spec)
    lost.close()
    assert stage_runs(tmp_path)[spec.key].info.status == "RUNNING"
    parent = Tracker(tmp_path, "tiny", "study tiny", {})
    parent.stage_abandoned(spec)
    parent.close()
    assert stage_runs(tmp_path)[spec.key].info.status == "FAILED"


def test_a_parent_whose_mlflow_is_away_asks_without_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "connect", refuse)
    assert Tracker(tmp_path, "tiny", "study tiny", {}).parent_run(patience=5) == ""
