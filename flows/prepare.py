"""Problems, traces and the leakage report.

alignflow prepare tiny
"""

from typing import Any

from prefect import flow

from flows.runner import flow_run, summarize
from tasks.data import count_traces, filter_traces, prepare_problems


@flow(name="prepare", flow_run_name="{preset}")
def prepare(preset: str = "tiny", overrides: dict[str, Any] | None = None, root: str | None = None) -> dict[str, Any]:
    """Prepare the problems of a preset and filter its traces.

    preset, overrides, root: as for the study flow.
    """
    with flow_run("prepare", preset, overrides, root) as (workspace, config):
        problems = prepare_problems(workspace, config)
        if count_traces(workspace, problems) != 0:
            filter_traces(workspace, config, problems)
        return summarize(workspace, [])
