"""What a flow would compute, before anything does: the flow's own body, in a workspace that only plans.

Prefect's engine and its server are not asked, no torch is imported, nothing is written.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import Flow

from alignment_core.planning import Plan, PlannedStage
from alignment_core.report_text import duration
from flows.doctor import disk_line
from flows.runner import PLANNING
from tasks.workspace import planning_workspace

WORDS = {"cached": "cached", "run": "would run", "unknown": "may run"}


def plan_flow(flow: Flow[..., dict[str, Any]], root: str | None, **parameters: Any) -> Plan:
    """The plan of one flow under `root`; raises what the flow itself would raise over its settings."""
    workspace = planning_workspace(root)
    token = PLANNING.set(workspace)
    try:
        flow.fn(root=root, **parameters)
    finally:
        PLANNING.reset(token)
    if workspace.planner is None:
        raise RuntimeError("a planning workspace has a planner")
    return workspace.planner.plan()


def describe(plan: Plan, root: Path) -> Iterator[str]:
    """The plan as lines: a stage each, but those that are simply there; then the counts, then the disk."""
    for stage in plan.stages:
        if stage.status == "cached" and not stage.accepted:
            continue
        size = stage.weight_bytes() if stage.status != "cached" else 0
        weights = f"  [{gigabytes(size)}]" if size else ""
        yield f"{WORDS[stage.status]:>10}  {stage.label}  {(stage.key or '-')[:12]}  {stage.reason}{weights}"
    yield from plan.notes
    counts = {words: sum(one.status == status for one in plan.stages) for status, words in WORDS.items()}
    yield "stages: " + ", ".join(f"{count} {words}" for words, count in counts.items())
    yield from forecast_time(plan)
    yield from forecast_disk(plan, root)


def forecast_time(plan: Plan) -> Iterator[str]:
    """What the stages that run may take, one after another."""
    if measured := plan.seconds("measured"):
        yield f"time: about {duration(measured)} by what stages of their kind took here"
    if reckoned := plan.seconds("arithmetic"):
        yield (
            f"time: about {reckoned / 3600:.1f} GPU-hours by arithmetic, not measured: one H100-class GPU at 40 % of "
            "its rate, 6 ms a decoding step, responses of 400 tokens, validation counted"
        )
    if untimed := plan.untimed():
        yield f"time: {len(untimed)} stage(s) not counted: nothing of their kind was run here before"


def forecast_disk(plan: Plan, root: Path) -> Iterator[str]:
    """What weights and checkpoints may take, beside what is free."""
    weights, states, checkpoints = plan.weight_bytes(), plan.state_bytes(), plan.checkpoint_bytes()
    if weights or checkpoints:
        largest = max(plan.to_compute(), key=PlannedStage.checkpoint_bytes)
        size = f"{largest.model.parameters:,} parameters by {largest.model.source}" if largest.model else ""
        yield (
            f"disk: up to {gigabytes(weights)} of published weights, and {gigabytes(checkpoints)} of checkpoints while "
            f"a stage trains ({gigabytes(largest.checkpoint_bytes())} each; {size}); samples and records are small"
        )
    if states:
        yield f"disk: {gigabytes(states)} of training states, kept for runs of more steps unless grpo.keep_state=false"
    for stage in plan.unsized():
        yield f"disk: {stage.label} not counted: the size of its model is not known before its config.json is here"
    yield f"disk: {disk_line(root)}"
    if weights + states + checkpoints > free_bytes(root):
        yield (
            f"disk: NOT ENOUGH: {gigabytes(weights + states + checkpoints)} may be needed; free some "
            "(alignflow artifacts gc) or choose another --root"
        )


def free_bytes(root: Path) -> int:
    """Free space where the root is, or would be."""
    return shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free


def gigabytes(count: int) -> str:
    """Bytes in the unit that suits them, decimal: 18.5 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
