"""The study's page, self-contained HTML.

alignflow report tiny
"""

from typing import Any

from prefect import flow

from flows import steps
from flows.runner import flow_run, summarize


@flow(name="report", flow_run_name="{preset}")
def report(preset: str = "tiny", overrides: dict[str, Any] | None = None, root: str | None = None) -> dict[str, Any]:
    """The study's page, self-contained HTML.

    What the study lacks is computed first. preset, overrides, root: as for the study flow.
    """
    with flow_run("report", preset, overrides, root) as (workspace, config):
        study = steps.start(workspace, config)
        steps.run_experiments(study)
        analysis = steps.analyze_step(study)
        return summarize(workspace, study.evaluations, steps.report_step(study, analysis))
