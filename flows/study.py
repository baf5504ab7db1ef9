"""The whole study: prepare -> zero-shot -> SFT sweep -> Expert Iteration -> GRPO -> report.

prefect deployment run 'study/tiny'        alignflow run tiny
"""

from typing import Any

from prefect import flow

from flows import steps
from flows.runner import flow_run, name_flow_run, summarize
from tasks.pools import Executor


@flow(name="study", flow_run_name=name_flow_run)
def study(
    preset: str = "tiny",
    overrides: dict[str, Any] | None = None,
    root: str | None = None,
    executor: Executor = "local",
) -> dict[str, Any]:
    """Run every stage of a preset that the store does not hold yet.

    Args:
        preset: A shipped preset (smoke, tiny, gsm8k-1.5b, math-1.5b) or a YAML file.
        overrides: Settings that differ from the preset's, by dotted name, e.g. {"grpo.n_grpo_steps": 20};
            {"grpo.lr": 2e-5} is short for the learning rate of a method.
        root: Folder of the store and of mlruns; default: ALIGNFLOW_ROOT of the worker, else its working directory.
        executor: Where the stages that need torch run: local, here; work-pool, on the workers of the GPU pool.
    """
    with flow_run("study", preset, overrides, root, executor) as (workspace, config):
        grown = steps.start(workspace, config)
        steps.run_experiments(grown)
        report = steps.report_step(grown, steps.analyze_step(grown))
        return summarize(workspace, grown.evaluations, report)
