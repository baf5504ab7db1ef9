"""Evaluation of one model on a preset's problems: sample, then grade.

alignflow eval gsm8k-1.5b --model ./checkpoint --out results
"""

import shutil
from pathlib import Path
from typing import Any

from prefect import flow

from alignment_core.records import ArtifactRef
from alignment_core.stage_config import Comparison
from flows import steps
from flows.runner import flow_run, name_flow_run, summarize
from tasks.data import prepare_problems
from tasks.evaluation import evaluate
from tasks.pools import Executor
from tasks.workspace import Workspace


@flow(name="evaluation", flow_run_name=name_flow_run)
def evaluation(
    preset: str = "tiny",
    overrides: dict[str, Any] | None = None,
    root: str | None = None,
    executor: Executor = "local",
    artifact: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Evaluate the preset's model, or the model of a finished training stage.

    Args:
        preset: A shipped preset (smoke, tiny, gsm8k-1.5b, math-1.5b) or a YAML file.
        overrides: Settings that differ from the preset's, by dotted name, e.g. {"grpo.n_grpo_steps": 20};
            {"grpo.lr": 2e-5} is short for the learning rate of a method.
        root: Folder of the store and of mlruns; default: ALIGNFLOW_ROOT of the worker, else its working directory.
        executor: Where the stages that need torch run: local, here; work-pool, on the workers of the GPU pool.
        artifact: Key of a finished stage that holds a model; default: the preset's model.
        out: Folder that receives results.jsonl and summary.json.
    """
    with flow_run("evaluation", preset, overrides, root, executor) as (workspace, config):
        if artifact is None:
            evaluated = steps.start(workspace, config).evaluations
        else:
            found = workspace.store.find(artifact)
            require_model(workspace, found.ref(), found.label)
            comparison = Comparison(name=f"{found.label} ({found.key[:8]})", method="sft")
            problems = prepare_problems(workspace, config)
            evaluated = [evaluate(workspace, config, comparison, found.ref(), problems)]
        if out is not None and workspace.planner is None:
            export_results(workspace, evaluated[0].grade, Path(out))
        return summarize(workspace, evaluated)


def require_model(workspace: Workspace, ref: ArtifactRef, label: str) -> None:
    """Raise ValueError if an artifact holds neither weights nor a pointer to some."""
    folder = workspace.store.path(ref)
    if not (folder / "model").is_dir() and not (folder / "record" / "location.json").is_file():
        raise ValueError(
            f"{label} ({ref.stage}/{ref.key[:12]}) holds no model; "
            "'alignflow artifacts ls --stage sft' or '--stage grpo' lists those that do"
        )


def export_results(workspace: Workspace, graded: ArtifactRef, folder: Path) -> None:
    """Copy the rows and the summary of an evaluation to a folder of the user's."""
    source = workspace.store.path(graded)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "results.jsonl", folder / "results.jsonl")
    shutil.copyfile(source / "summary.json", folder / "summary.json")
