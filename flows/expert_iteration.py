"""Expert Iteration: rounds of sample, grade, select, SFT and evaluation.

alignflow ei tiny
"""

from typing import Any

from prefect import flow

from flows import steps
from flows.runner import flow_run, summarize


@flow(name="expert-iteration", flow_run_name="{preset}")
def expert_iteration(
    preset: str = "tiny", overrides: dict[str, Any] | None = None, root: str | None = None
) -> dict[str, Any]:
    """Run the study's Expert Iteration from each of its starts.

    preset, overrides, root: as for the study flow.
    """
    with flow_run("expert-iteration", preset, overrides, root) as (workspace, config):
        study = steps.start(workspace, config)
        steps.run_experiments(study, "expert_iteration")
        return summarize(workspace, study.evaluations)
