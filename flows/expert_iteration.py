"""Expert Iteration: rounds of sample, grade, select, SFT and evaluation.

alignflow ei tiny
"""

from typing import Any

from alignment_core.study_config import StudyConfig
from flows import steps
from flows.runner import study_flow, summarize
from tasks.workspace import Workspace


@study_flow
def expert_iteration(workspace: Workspace, config: StudyConfig) -> dict[str, Any]:
    """Run the study's Expert Iteration from each of its starts."""
    study = steps.start(workspace, config)
    steps.run_experiments(study, "expert_iteration")
    return summarize(workspace, study.evaluations)
