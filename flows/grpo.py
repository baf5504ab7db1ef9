"""GRPO from the base model or from an SFT checkpoint, evaluated.

alignflow grpo tiny
"""

from typing import Any

from prefect import flow

from flows import steps
from flows.runner import flow_run, summarize


@flow(name="grpo", flow_run_name="{preset}")
def grpo(preset: str = "tiny", overrides: dict[str, Any] | None = None, root: str | None = None) -> dict[str, Any]:
    """Run the study's GRPO from each of its starts.

    preset, overrides, root: as for the study flow.
    """
    with flow_run("grpo", preset, overrides, root) as (workspace, config):
        study = steps.start(workspace, config)
        steps.run_experiments(study, "grpo")
        return summarize(workspace, study.evaluations)
