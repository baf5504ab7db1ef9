"""Evaluation of one model on a preset's problems: sample, then grade; on the study's terms or on others'.

alignflow eval gsm8k-1.5b --model ./checkpoint --terms few_shot --out results --format lm-eval
"""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow

from alignment_core.comparability import Terms
from alignment_core.lm_eval_format import write_lm_eval
from alignment_core.records import ArtifactRef, EvalReport, Problem, read_jsonl
from alignment_core.stage_config import Comparison
from flows import steps
from flows.runner import flow_run, name_flow_run, summarize
from tasks.data import prepare_problems
from tasks.evaluation import evaluate
from tasks.pools import Executor
from tasks.workspace import Workspace

TERMS: dict[str, dict[str, Any]] = {
    "r1_zero": {"prompt": "reasoning", "evaluation.reward": "r1_zero", "evaluation.few_shot": None},
    "question_only": {
        "prompt": "question_only",
        "evaluation.reward": "question_only",
        "evaluation.few_shot": None,
        "sampling.stop": [],
    },
    "few_shot": {"evaluation.reward": "number", "evaluation.few_shot.template": "few_shot"},
    "few_shot_boxed": {"evaluation.reward": "question_only", "evaluation.few_shot.template": "few_shot_boxed"},
}
"""Ways to ask and to read the answer, as settings over a preset's own: tags, a box, the last number after worked
examples, a box after worked examples. Format and reward are those of the name, the words of the prompts are our own; a
published prompt is a file to give as `prompt`."""
FORMATS = ("jsonl", "lm-eval")
"""jsonl: results.jsonl and summary.json. lm-eval: also the files of lm-evaluation-harness (`--log_samples`)."""


@flow(name="evaluation", flow_run_name=name_flow_run)
def evaluation(
    preset: str = "tiny",
    overrides: dict[str, Any] | None = None,
    root: str | None = None,
    executor: Executor = "local",
    artifact: str | None = None,
    out: str | None = None,
    terms: str | None = None,
    layout: str = "jsonl",
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
        terms: How to ask: r1_zero, question_only, few_shot or few_shot_boxed, in our own words; overrides go over it,
            such as {"prompt": "FILE"} for a published template.
        layout: jsonl; lm-eval also writes the files of lm-evaluation-harness.
    """
    settings = settings_of(terms) | (overrides or {})
    require_format(layout)
    with flow_run("evaluation", preset, settings, root, executor, artifact) as (workspace, config):
        if artifact is None:
            evaluated = steps.start(workspace, config).evaluations
        else:
            found = workspace.store.find(artifact)
            require_model(workspace, found.ref(), found.label)
            comparison = Comparison(name=f"{found.label} ({found.key[:8]})", method="sft")
            problems = prepare_problems(workspace, config)
            evaluated = [evaluate(workspace, config, comparison, found.ref(), problems)]
        if out is not None and workspace.planner is None:
            export_results(workspace, evaluated[0].grade, Path(out), layout, f"{config.name}-{config.evaluation.split}")
        return summarize(workspace, evaluated)


def require_model(workspace: Workspace, ref: ArtifactRef, label: str) -> None:
    """Raise ValueError if an artifact holds neither weights nor a pointer to some."""
    folder = workspace.store.path(ref)
    if not (folder / "model").is_dir() and not (folder / "record" / "location.json").is_file():
        raise ValueError(
            f"{label} ({ref.stage}/{ref.key[:12]}) holds no model; "
            "'alignflow artifacts ls --stage sft' or '--stage grpo' lists those that do"
        )


def settings_of(terms: str | None) -> dict[str, Any]:
    """The settings behind the name of some terms; none without a name. Raises ValueError for an unknown one."""
    if terms is not None and terms not in TERMS:
        raise ValueError(f"no terms {terms!r}: choose one of {', '.join(TERMS)}, or leave the preset's own")
    return dict(TERMS[terms]) if terms is not None else {}


def require_format(layout: str) -> None:
    """Raise ValueError for an unknown format of results."""
    if layout not in FORMATS:
        raise ValueError(f"no format {layout!r}: choose one of {', '.join(FORMATS)}")


def export_results(
    workspace: Workspace, graded: ArtifactRef, folder: Path, layout: str = "jsonl", task: str = "alignflow"
) -> None:
    """Copy the rows, the summary and the terms of an evaluation to a folder of the user's."""
    source = workspace.store.path(graded)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "summary.json", "terms.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if layout != "lm-eval":
        return
    asked = workspace.store.path(workspace.store.manifest(graded.stage, graded.key).parents["completions"])
    with (source / "results.jsonl").open("r", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    write_lm_eval(
        folder,
        task,
        datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f"),
        read_jsonl(asked / "problems.jsonl", Problem),
        rows,
        Terms.model_validate_json((source / "terms.json").read_bytes()),
        EvalReport.model_validate_json((source / "summary.json").read_bytes()),
    )
