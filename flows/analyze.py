"""Statistics over a study's evaluations: intervals, paired tests, the split of each gain.

alignflow analyze tiny
"""

from typing import Any

from prefect import flow

from flows import steps
from flows.runner import flow_run, summarize


@flow(name="analyze", flow_run_name="{preset}")
def analyze(preset: str = "tiny", overrides: dict[str, Any] | None = None, root: str | None = None) -> dict[str, Any]:
    """Statistics over a study's evaluations: intervals, paired tests, the split of each gain.

    What the study lacks is computed first. preset, overrides, root: as for the study flow.
    """
    with flow_run("analyze", preset, overrides, root) as (workspace, config):
        study = steps.start(workspace, config)
        steps.run_experiments(study)
        analysis = steps.analyze_step(study)
        result = summarize(workspace, study.evaluations)
        return {**result, "analysis": str(workspace.store.path(analysis) / "analysis.json")}
