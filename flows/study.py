"""The whole study: prepare -> zero-shot -> the experiments -> statistics -> report.

prefect deployment run 'study/tiny'        alignflow run tiny
"""

from typing import Any

from alignment_core.study_config import StudyConfig
from flows import steps
from flows.runner import study_flow, summarize
from tasks.workspace import Workspace


@study_flow
def study(workspace: Workspace, config: StudyConfig) -> dict[str, Any]:
    """Run every stage of a preset that the store does not hold yet."""
    grown = steps.start(workspace, config)
    steps.run_experiments(grown)
    report = steps.report_step(grown, steps.analyze_step(grown))
    return summarize(workspace, grown.evaluations, report)
