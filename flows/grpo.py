"""GRPO from the base model or from an SFT checkpoint, evaluated.

alignflow grpo tiny
"""

from typing import Any

from alignment_core.study_config import StudyConfig
from flows import steps
from flows.runner import study_flow, summarize
from tasks.workspace import Workspace


@study_flow
def grpo(workspace: Workspace, config: StudyConfig) -> dict[str, Any]:
    """Run the study's GRPO from each of its starts."""
    study = steps.start(workspace, config)
    steps.run_experiments(study, "grpo")
    return summarize(workspace, study.evaluations)
