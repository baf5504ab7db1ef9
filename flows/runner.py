"""What every flow does around its list of calls: settings in, workspace open, a plain summary out."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from prefect import Flow, flow, runtime

from alignment_core.records import ArtifactRef
from alignment_core.study_config import StudyConfig
from flows.settings import load_config
from tasks.evaluation import Evaluated, read_summary
from tasks.pools import Executor
from tasks.prefect_view import show_evaluations
from tasks.workspace import Workspace, open_workspace

PARAMETERS = """
Args:
    preset: A shipped preset (smoke, tiny, gsm8k-1.5b, math-1.5b), SCALE/STUDY or a YAML file.
    overrides: Settings that differ from the preset's, by dotted name, e.g. {"grpo.n_grpo_steps": 20};
        {"grpo.lr": 2e-5} is short for the learning rate of a method, which its own flow takes as {"lr": 2e-5}.
    root: Folder of the store and of mlruns; default: ALIGNFLOW_ROOT of the worker, else its working directory.
    executor: Where the stages that need torch run: local, here; work-pool, on the workers of the GPU pool.
"""
"""What every flow takes, as its docstring and Prefect's form of parameters say it."""

PLANNING: ContextVar[Workspace | None] = ContextVar("planning", default=None)
"""The workspace that flows work in while a plan is made (flows.plan)."""


def study_flow(body: Callable[[Workspace, StudyConfig], dict[str, Any]]) -> Flow[..., dict[str, Any]]:
    """The Prefect flow of a list of calls: named as `body`, taking what every flow takes (`PARAMETERS`)."""
    name = body.__name__.replace("_", "-")

    def run(
        preset: str = "tiny",
        overrides: dict[str, Any] | None = None,
        root: str | None = None,
        executor: Executor = "local",
    ) -> dict[str, Any]:
        with flow_run(name, preset, overrides, root, executor) as (workspace, config):
            result = body(workspace, config)
            require_whole(workspace, result)
            return result

    run.__module__, run.__name__, run.__qualname__ = body.__module__, body.__name__, body.__qualname__
    run.__doc__ = f"{inspect.getdoc(body)}\n{PARAMETERS}"
    return flow(name=name, flow_run_name=name_flow_run)(run)


class IncompleteStudy(ValueError):
    """Members of a study failed, and the rest of it is done."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result
        """What the flow would have returned."""


def require_whole(workspace: Workspace, result: dict[str, Any]) -> None:
    """Raise IncompleteStudy that names the members that failed, and why, and where the rest is reported."""
    if not workspace.failures:
        return
    told = [f"  {name}: {error}" for name, error in workspace.failures.items()]
    report = f" The report says what is there: {result['report']}" if result.get("report") else ""
    message = "\n".join([f"not all of this study could be done; the rest was, and is kept.{report}", *told])
    raise IncompleteStudy(message, result) from next(iter(workspace.failures.values()))


@contextmanager
def flow_run(
    flow_name: str,
    preset: str,
    overrides: dict[str, Any] | None,
    root: str | None,
    executor: Executor = "local",
    artifact: str | None = None,
) -> Iterator[tuple[Workspace, StudyConfig]]:
    """Validated settings and an open workspace; the planning one while a plan is made.

    artifact: key of the model that is evaluated in place of the preset's, for the journal.
    """
    config = load_config(preset, overrides, flow_name)
    planned = PLANNING.get()
    if planned is not None:
        yield planned, config
        return
    request = {"flow": flow_name, "preset": preset, "overrides": overrides or {}, "artifact": artifact}
    name, settings = f"{flow_name} {config.name} seed{config.seed}", config.model_dump(mode="json")
    with open_workspace(root, config.name, name, request, settings, executor, model_name(config)) as workspace:
        yield workspace, config


def model_name(config: StudyConfig) -> str:
    """Last part of a hub id or of a folder's path."""
    return config.model.source.rstrip("/").rpartition("/")[2] or config.model.source


def name_flow_run() -> str:
    """Name of the current flow run: method, study, model, seeds. For settings that will be refused: the preset."""
    parameters = runtime.flow_run.parameters
    preset = str(parameters.get("preset"))
    try:
        config = load_config(preset, parameters.get("overrides"), str(runtime.flow_run.flow_name))
    except ValueError:
        return preset
    model = f"artifact {parameters['artifact']}" if parameters.get("artifact") else model_name(config)
    seeds = ", ".join(map(str, config.seeds))
    return f"{runtime.flow_run.flow_name} {config.name}: {model}, seed {seeds}"


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
    show_evaluations(workspace.annotations().get("study", ""), rows)
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
