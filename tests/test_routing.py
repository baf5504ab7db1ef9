"""Studies that ask workers for their stages: a real Prefect server, real pools, real processes, some of them killed."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hosts_kit import ALIGNFLOW, PREFECT, ROOT, Hosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL: dict[str, Any] = {
    "model.scratch.documents": 3000,
    "data.arithmetic.max_total": 7,
    "data.arithmetic.step_shares": [1.0],
    "data.arithmetic.train": 128,
    "evaluation.limit": 40,
    "plain_prompt": None,
    "experiments": [{"name": "sft", "method": "sft"}, {"name": "grpo/base", "method": "grpo"}],
}


def settings(**overrides: Any) -> list[str]:
    """Smoke, smaller still, as options of the command."""
    return [word for name, value in {**SMALL, **overrides}.items() for word in ("--set", f"{name}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A server, set up, and two hosts with a GPU each, as far as anyone can tell; the first serves `cpu`, too."""
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        hosts.start_server()
        said = hosts.done(*ALIGNFLOW, "setup")
        assert "pool h100       created, 64 flow runs at once" in said
        assert "automation     created" in said
        hosts.start_host("first", "--gpu", "0", "--cpu", "2")
        hosts.start_host("second", "--gpu", "0")
        yield hosts
    finally:
        hosts.close()


def stage_runs(hosts: Hosts, stage: str, study: str = "smoke") -> list[dict[str, Any]]:
    """Flow runs of one kind of stage."""
    return hosts.flow_runs(f"stage:{stage}", f"study:{study}")


def states(runs: list[dict[str, Any]]) -> list[str]:
    """Of flow runs, by name."""
    return [run["state_name"] for run in runs]


def worker_of(run: dict[str, Any]) -> str:
    """Who took a flow run."""
    return str(run["labels"]["prefect.worker.name"])


def mlflow_runs(hosts: Hosts) -> list[Any]:
    """What MLflow shows of the study."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{hosts.root / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=500))


def test_two_parents_at_once_and_a_stage_that_is_killed_compute_each_stage_once(hosts: Hosts) -> None:
    command = ("eval", "smoke", *settings())
    parents = [
        hosts.study("parent-1.log", *command, python=("-X", "importtime")),
        hosts.study("parent-2.log", *command),
    ]
    hosts.until(lambda: hosts.checkpoint("pretrain"))
    running = hosts.running("stage:pretrain")
    assert running is not None
    os.kill(int(running["infrastructure_pid"]), signal.SIGKILL)
    assert [parent.wait(timeout=400) for parent in parents] == [0, 0], hosts.log("parent-1.log")[-3000:]

    pretrain, sample = stage_runs(hosts, "pretrain"), stage_runs(hosts, "sample")
    assert states(pretrain) == ["Crashed", "Completed"]
    assert states(sample) == ["Completed"]
    logs = [hosts.log("parent-1.log"), hosts.log("parent-2.log")]
    for log in logs:
        assert f"crashed on {worker_of(pretrain[0])}" in log
        assert "attempt 2 of 3" in log
    assert any("is already with pool h100" in log for log in logs)
    assert any("resumed sft at step" in log for log in logs)
    imported = {line.rpartition("|")[2].strip() for line in logs[0].splitlines() if line.startswith("import time:")}
    assert "prefect" in imported
    assert not imported & {"torch", "transformers"}
    keys = [run.data.tags.get("alignflow.stage_key") for run in mlflow_runs(hosts) if parent_of(run)]
    assert len(keys) == len(set(keys)) == 4


def test_a_study_from_a_deployment_runs_its_members_side_by_side(hosts: Hosts) -> None:
    overrides = {**SMALL, "sft.epochs": 6, "grpo.n_grpo_steps": 12}
    parameters = ["-p", f"overrides={json.dumps(overrides)}", "-p", "executor=work-pool", "-p", f"root={hosts.root}"]
    hosts.done(*PREFECT, "deployment", "run", "study/smoke", *parameters)
    first = hosts.until(lambda: next(iter(training(hosts)), None))
    with standing_still(first):  # a process takes longer to start than these few steps
        second = hosts.until(lambda: next((run for run in training(hosts) if run["id"] != first["id"]), None))
        with standing_still(second):
            shown = hosts.done(*ALIGNFLOW, "status")
    for words in ("smoke scratch grpo/base/seed0", "first-gpu0", "second-gpu0", "first-cpu", "busy", "nobody serves"):
        assert words in shown
    study = hosts.until(lambda: ended(hosts.flow_runs("smoke")))
    assert study["state_name"] == "Completed", study["state"]
    assert study["work_pool_name"] == "cpu"
    sft, grpo = stage_runs(hosts, "sft"), stage_runs(hosts, "grpo")
    assert states(sft) == states(grpo) == ["Completed"]
    assert {worker_of(sft[0]), worker_of(grpo[0])} == {"first-gpu0", "second-gpu0"}
    assert moment(sft[0]["start_time"]) < moment(grpo[0]["end_time"])
    assert moment(grpo[0]["start_time"]) < moment(sft[0]["end_time"])
    (analysis,) = (hosts.root / "data" / "store" / "analyze").glob("*/manifest.json")
    compared = json.loads(analysis.read_text())["settings"]["evaluations"]
    assert [one["name"] for one in compared] == ["zero-shot", "sft/seed0", "grpo/base/seed0"]
    shown_runs = mlflow_runs(hosts)
    studies = {run.info.run_id for run in shown_runs if not parent_of(run)}
    assert {parent_of(run) for run in shown_runs if parent_of(run)} <= studies
    assert {run.info.status for run in shown_runs} == {"FINISHED"}


def training(hosts: Hosts) -> list[dict[str, Any]]:
    """The members that are under way."""
    return [run for stage in ("sft", "grpo") if (run := hosts.running(f"stage:{stage}")) is not None]


@contextmanager
def standing_still(run: dict[str, Any]) -> Iterator[None]:
    """The process of a flow run is stopped in the block, and goes on after it."""
    process = int(run["infrastructure_pid"])
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def parent_of(run: Any) -> str:
    """MLflow's run that a run is nested under."""
    return str(run.data.tags.get("mlflow.parentRunId", ""))


def ended(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest of these flow runs, if it has ended."""
    return runs[-1] if runs and runs[-1]["end_time"] else None


def moment(text: str) -> datetime:
    """A time as the API writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_a_member_that_fails_on_a_worker_leaves_the_rest(hosts: Hosts) -> None:
    short = {"name": "short", "method": "sft", "settings": {"sft.max_length": 2}}
    rest = {"name": "sft", "method": "sft"}
    said = hosts.done(*hosts.study_command("run", "smoke", *settings(experiments=[short, rest])), code=1)
    assert "not all of this study could be done; the rest was, and is kept" in said
    assert re.search(r"^  short/seed0: none of \d+ examples fits: give more, or raise sft.max_length 2$", said, re.M)
    assert "Traceback" not in said
    (failed,) = [run for run in stage_runs(hosts, "sft") if run["state_name"] == "Failed"]
    assert failed["state"]["message"].startswith("ValueError: none of ")


def test_a_flow_in_a_gpu_pool_asks_no_other_worker(hosts: Hosts) -> None:
    """One worker must suffice: were the flow to ask the pool, it would wait for itself."""
    assert hosts.stop(hosts.hosts["second"], signal.SIGTERM) == 0
    before = len(hosts.flow_runs("stage"))
    overrides = {**SMALL, "lr": 3e-4, "steps": 2}
    parameters = ["-p", "preset=smoke", "-p", f"overrides={json.dumps(overrides)}", "-p", "executor=work-pool"]
    hosts.done(*PREFECT, "deployment", "run", "grpo/gsm8k-1.5b", *parameters, "-p", f"root={hosts.root}")
    run = hosts.until(lambda: ended(hosts.flow_runs("gsm8k")))
    assert run["state_name"] == "Completed", run["state"]
    assert run["work_pool_name"] == "h100"
    assert len(hosts.flow_runs("stage")) == before
    rates = {run.data.params.get("grpo.optimizer.learning_rate") for run in mlflow_runs(hosts)}
    assert "0.0003" in rates


def test_a_host_on_another_commit_refuses_and_names_what_differs(hosts: Hosts, tmp_path: Path) -> None:
    for part in ("alignment_core", "flows", "tasks"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    stage = tmp_path / "alignment_core" / "stages" / "pretrain.py"
    stage.write_text(stage.read_text().replace("run.say(", "run.say('edited: ' + ", 1))
    said = hosts.done(*hosts.study_command("eval", "smoke", *settings(seed=5)), code=1, cwd=tmp_path)
    assert "has other code or libraries than the study that asks" in said
    assert "pretrain.run" in said
    assert "Check out the same commit" in said
    assert "Traceback" not in said
    assert states(stage_runs(hosts, "pretrain"))[-1] == "Failed"


def test_without_a_worker_a_stage_says_which_one_to_start(hosts: Hosts) -> None:
    code = """
from alignment_core.stage import make_spec
from alignment_core.stage_config import ImportModelStage
from alignment_core.store import Store
from pathlib import Path
from tasks.dispatch import Dispatcher, Patience
from tasks.stage_request import StageRequest
from tasks.progress import LogListener
import logging
logging.basicConfig(level="INFO")
spec = make_spec("import_model", ImportModelStage(source="owner/model"), {}, "base model")
spec = spec.model_copy(update={"config": {**spec.config, "processes": 2}})
request = StageRequest(spec=spec, study="smoke")
Dispatcher(Patience(poll=0.5, deadline=5 / 3600)).compute(Store(Path("store")), request, LogListener())
"""
    said = hosts.done(sys.executable, "-c", code, code=1)
    assert "no worker polls pool h100-multi: start one with `alignflow worker --multi 0,1`" in said
    assert "base model is Scheduled after" in said or "base model is Late after" in said


def test_a_parent_that_is_killed_is_attached_to_a_host_that_ends_is_left_and_ctrl_c_cancels(hosts: Hosts) -> None:
    long = ("eval", "smoke", *settings(**{"model.scratch.documents": 40_000}))
    killed = hosts.study("killed.log", *long)
    first = hosts.until(lambda: hosts.running("stage:pretrain"))
    hosts.stop(killed, signal.SIGKILL)
    parent = hosts.study("parent-3.log", *long)
    hosts.until(lambda: "is already with pool h100" in hosts.log("parent-3.log"))
    hosts.until(lambda: hosts.checkpoint("pretrain") > 20)

    hosts.start_host("third", "--gpu", "0")
    assert hosts.stop(hosts.hosts[worker_of(first).removesuffix("-gpu0")], signal.SIGTERM) == 0
    again = hosts.until(lambda: hosts.running("stage:pretrain"))
    assert (again["id"], worker_of(again)) != (first["id"], worker_of(first))
    hosts.until(lambda: "resumed sft at step" in hosts.log("parent-3.log"))

    assert hosts.stop(parent, signal.SIGINT) == 130
    assert "alignflow: interrupted" in hosts.log("parent-3.log")
    hosts.until(lambda: states(stage_runs(hosts, "pretrain"))[-2:] == ["Crashed", "Cancelled"])
    assert {hosts.stop(host, signal.SIGTERM) for host in hosts.hosts.values()} == {0}
    assert [line for line in hosts.processes() if "prefect.engine" in line or "worker" in line] == []
