"""Statistics over a study's evaluations: intervals, paired tests, the split of each gain.

alignflow analyze tiny
"""

from typing import Any

from alignment_core.study_config import StudyConfig
from flows import steps
from flows.runner import study_flow, summarize
from tasks.workspace import Workspace


@study_flow
def analyze(workspace: Workspace, config: StudyConfig) -> dict[str, Any]:
    """Statistics over a study's evaluations: intervals, paired tests, the split of each gain.

    What the study lacks is computed first.
    """
    study = steps.start(workspace, config)
    steps.run_experiments(study)
    analysis = steps.analyze_step(study)
    result = summarize(workspace, study.evaluations)
    return {**result, "analysis": str(workspace.store.path(analysis) / "analysis.json")}
