"""Problems and traces as cached stages."""

import hashlib
from pathlib import Path

from alignment_core.config import DataConfig
from alignment_core.manifest import file_sha256
from alignment_core.planning import UNKNOWN_COUNT, is_planned
from alignment_core.problem_sources import require_readable
from alignment_core.prompts import read_template
from alignment_core.records import ArtifactRef
from alignment_core.stage_config import FilterStage, PrepareStage
from alignment_core.study_config import StudyConfig
from tasks.stages import run_cached
from tasks.workspace import Workspace


def prepare_problems(workspace: Workspace, config: StudyConfig, label: str = "prepare") -> ArtifactRef:
    """Splits with prompts, traces and the leakage report.

    Raises ValueError, naming file and line, if a local source cannot be read: at once, and in a plan too.
    """
    for source, split in ((config.data.train, "train"), (config.data.test, "test"), (config.data.traces, "train")):
        if source:
            require_readable(source, split)
    stage = PrepareStage(
        data=config.data,
        template=read_template(config.prompt),
        seed=config.seed,
        content=source_digests(config.data),
    )
    return run_cached(workspace, "prepare", stage, {}, label)


def source_digests(data: DataConfig) -> dict[str, str]:
    """Content of the local files and folders a data section names, by field; hub ids are left out."""
    digests = {name: source_digest(getattr(data, name)) for name in ("train", "test", "traces")}
    return {name: digest for name, digest in digests.items() if digest is not None}


def source_digest(source: str | None) -> str | None:
    """sha256 of a local file or of all files in a folder; None for a hub id, or for nothing."""
    path = Path(source or "")
    if path.is_file():
        return file_sha256(path)
    if not source or not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    parts = [f"{file.relative_to(path)} {file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def filter_traces(workspace: Workspace, config: StudyConfig, problems: ArtifactRef, of: str = "") -> ArtifactRef:
    """The traces whose answer the grader accepts; of: end of the label, for other problems than the study's own."""
    stage = FilterStage(reward=config.evaluation.reward)
    return run_cached(workspace, "filter", stage, {"problems": problems}, f"filter traces{of}")


def count_traces(workspace: Workspace, traces: ArtifactRef) -> int:
    """Rows of a prepare or filter artifact's trace set; a placeholder while planning."""
    if is_planned(traces):
        return UNKNOWN_COUNT
    with (workspace.store.path(traces) / "traces.jsonl").open("rb") as file:
        return sum(1 for _ in file)


def same_traces(workspace: Workspace, filtered: ArtifactRef, problems: ArtifactRef) -> bool:
    """Whether a filter kept every trace that was prepared; not known, and taken for no, while it is only planned."""
    if is_planned(filtered) or is_planned(problems):
        return False
    return count_traces(workspace, filtered) == count_traces(workspace, problems)
