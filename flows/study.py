"""The whole study: prepare -> zero-shot -> SFT sweep -> Expert Iteration -> GRPO -> report.

prefect deployment run 'study/tiny'        alignflow run tiny
"""

from typing import Any

from prefect import flow

from flows import steps
from flows.runner import flow_run, summarize


@flow(name="study", flow_run_name="{preset}")
def study(preset: str = "tiny", overrides: dict[str, Any] | None = None, root: str | None = None) -> dict[str, Any]:
    """Run every stage of a preset that the store does not hold yet.

    preset: a shipped name or a YAML file. overrides: settings by dotted name, e.g. {"grpo.n_grpo_steps": 20}.
    root: folder of the store and of mlruns; default is the working directory.
    """
    with flow_run("study", preset, overrides, root) as (workspace, config):
        grown = steps.start(workspace, config)
        steps.run_experiments(grown)
        report = steps.report_step(grown, steps.analyze_step(grown))
        return summarize(workspace, grown.evaluations, report)
