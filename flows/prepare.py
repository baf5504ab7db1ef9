"""Problems, traces and the leakage report.

alignflow prepare tiny
"""

from typing import Any

from prefect import flow

from flows.runner import flow_run, name_flow_run, summarize
from tasks.data import count_traces, filter_traces, prepare_problems
from tasks.pools import Executor


@flow(name="prepare", flow_run_name=name_flow_run)
def prepare(
    preset: str = "tiny",
    overrides: dict[str, Any] | None = None,
    root: str | None = None,
    executor: Executor = "local",
) -> dict[str, Any]:
    """Prepare the problems of a preset and filter its traces.

    Args:
        preset: A shipped preset (smoke, tiny, gsm8k-1.5b, math-1.5b) or a YAML file.
        overrides: Settings that differ from the preset's, by dotted name, e.g. {"grpo.n_grpo_steps": 20};
            {"grpo.lr": 2e-5} is short for the learning rate of a method.
        root: Folder of the store and of mlruns; default: ALIGNFLOW_ROOT of the worker, else its working directory.
        executor: Where the stages that need torch run: local, here; work-pool, on the workers of the GPU pool.
    """
    with flow_run("prepare", preset, overrides, root, executor) as (workspace, config):
        problems = prepare_problems(workspace, config)
        if count_traces(workspace, problems) != 0:
            filter_traces(workspace, config, problems)
        return summarize(workspace, [])
