"""What every flow does around its list of calls: settings in, workspace open, a plain summary out."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from alignment_core.records import ArtifactRef
from alignment_core.study_config import StudyConfig
from flows.settings import load_config
from tasks.evaluation import Evaluated, read_summary
from tasks.pools import Executor
from tasks.workspace import Workspace, open_workspace

PLANNING: ContextVar[Workspace | None] = ContextVar("planning", default=None)
"""The workspace that flows work in while a plan is made (flows.plan)."""


@contextmanager
def flow_run(
    flow: str, preset: str, overrides: dict[str, Any] | None, root: str | None, executor: Executor = "local"
) -> Iterator[tuple[Workspace, StudyConfig]]:
    """Validated settings and an open workspace; the planning one while a plan is made."""
    config = load_config(preset, overrides, flow)
    planned = PLANNING.get()
    if planned is not None:
        yield planned, config
        return
    request = {"flow": flow, "preset": preset, "overrides": overrides or {}}
    name = f"{flow} {config.name} seed{config.seed}"
    with open_workspace(root, config.name, name, request, executor, config.model.source) as workspace:
        yield workspace, config


def summarize(workspace: Workspace, evaluations: list[Evaluated], report: ArtifactRef | None = None) -> dict[str, Any]:
    """Plain data about what a flow produced: the rows of its table, where each stage came from, the report."""
    if workspace.planner is not None:
        return {"rows": [], "stages": {}, "report": None}
    store = workspace.store
    rows = []
    for item in evaluations:
        summary = read_summary(workspace, item.grade)
        seconds = sum(store.manifest(ref.stage, ref.key).producer.seconds for ref in item.training)
        row = summary.model_dump(include=set(SUMMARY_FIELDS))
        rows.append({"method": item.comparison.name, **row, "training_seconds": seconds, "grade": item.grade.key})
    return {
        "rows": rows,
        "stages": {label: outcome.how for label, outcome in workspace.outcomes.items()},
        "report": str(store.path(report) / "report.html") if report else None,
    }


SUMMARY_FIELDS = (
    "n",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "format_rate",
    "accuracy_formatted",
    "mean_length",
    "response_tokens",
)
