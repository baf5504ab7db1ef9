"""The study's page, self-contained HTML.

alignflow report tiny
"""

from typing import Any

from alignment_core.study_config import StudyConfig
from flows import steps
from flows.runner import study_flow, summarize
from tasks.workspace import Workspace


@study_flow
def report(workspace: Workspace, config: StudyConfig) -> dict[str, Any]:
    """The study's page, self-contained HTML.

    What the study lacks is computed first.
    """
    study = steps.start(workspace, config)
    steps.run_experiments(study)
    analysis = steps.analyze_step(study)
    return summarize(workspace, study.evaluations, steps.report_step(study, analysis))
