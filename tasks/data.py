"""Problems and traces as cached stages."""

from alignment_core.config import FilterStage, PrepareStage, StudyConfig, read_template
from alignment_core.records import ArtifactRef
from tasks.stages import run_cached
from tasks.workspace import Workspace


def prepare_problems(workspace: Workspace, config: StudyConfig) -> ArtifactRef:
    """Splits with prompts, traces and the leakage report."""
    stage = PrepareStage(data=config.data, template=read_template(config.prompt), seed=config.seed)
    return run_cached(workspace, "prepare", stage, {}, "prepare")


def filter_traces(workspace: Workspace, config: StudyConfig, problems: ArtifactRef) -> ArtifactRef:
    """The traces whose answer the grader accepts."""
    stage = FilterStage(reward=config.evaluation.reward)
    return run_cached(workspace, "filter", stage, {"problems": problems}, "filter traces")


def count_traces(workspace: Workspace, traces: ArtifactRef) -> int:
    """Rows of a prepare or filter artifact's trace set."""
    with (workspace.store.path(traces) / "traces.jsonl").open("rb") as file:
        return sum(1 for _ in file)
