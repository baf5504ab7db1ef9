"""The SFT sweep: sizes x {raw, filtered}, each trained and evaluated.

alignflow sft tiny
"""

from typing import Any

from prefect import flow

from flows import steps
from flows.runner import flow_run, summarize


@flow(name="sft", flow_run_name="{preset}")
def sft(preset: str = "tiny", overrides: dict[str, Any] | None = None, root: str | None = None) -> dict[str, Any]:
    """Train and evaluate every member of the sweep.

    preset, overrides, root: as for the study flow.
    """
    with flow_run("sft", preset, overrides, root) as (workspace, config):
        study = steps.start(workspace, config)
        steps.run_experiments(study, "sft")
        return summarize(workspace, study.evaluations)
