"""Problems, traces and the leakage report.

alignflow prepare tiny
"""

from typing import Any

from alignment_core.study_config import StudyConfig
from flows.runner import study_flow, summarize
from tasks.data import count_traces, filter_traces, prepare_problems
from tasks.workspace import Workspace


@study_flow
def prepare(workspace: Workspace, config: StudyConfig) -> dict[str, Any]:
    """Prepare the problems of a preset and filter its traces."""
    problems = prepare_problems(workspace, config)
    if count_traces(workspace, problems) != 0:
        filter_traces(workspace, config, problems)
    return summarize(workspace, [])
