"""The SFT sweep: sizes x {raw, filtered}, each trained and evaluated.

alignflow sft tiny
"""

from typing import Any

from alignment_core.study_config import StudyConfig
from flows import steps
from flows.runner import study_flow, summarize
from tasks.workspace import Workspace


@study_flow
def sft(workspace: Workspace, config: StudyConfig) -> dict[str, Any]:
    """Train and evaluate every member of the sweep."""
    study = steps.start(workspace, config)
    steps.run_experiments(study, "sft")
    return summarize(workspace, study.evaluations)
