"""A stage in a process of its own that SIGKILLs itself at a chosen place: nothing of it is in the product."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLACES = {
    "before the first checkpoint": ("StageRun.save_checkpoint", 1, "before"),
    "mid-step, before the update": ("{loop}.apply_update", 6, "before"),
    "mid-step, rollouts unconsumed": ("policy_gradient.collect_rollout", 3, "after"),
    "while writing a checkpoint": ("checkpoints.save_file", 4, "half"),
    "checkpoint written, not renamed": ("checkpoint_folders.write_durably", 2, "after"),
    "checkpoint renamed, older not removed": ("stage_run.sync_folder", 2, "after"),
    "results there, no manifest": ("Store.publish", 1, "before"),
    "manifest there, not renamed": ("store.write_durably", 1, "after"),
    "published, nobody told": ("Store.publish", 1, "after"),
}
"""Place -> function, the call of it that kills, and when in that call."""


def attempt(place: str | None, spec: Path, store: Path, report: Path) -> None:
    """One attempt at a stage; `report` gets its output, or what it had done when it died."""
    os.environ["ALIGNFLOW_CHECKPOINT_SECONDS"] = "0"
    from alignment_core import stage_process

    steps = [0]
    watch_steps(steps)
    if place is not None:
        name, number, when = PLACES[place]
        loop = "epochs" if spec.stem.startswith("sft") else "policy_gradient"
        plant(name.format(loop=loop), number, when, lambda: die(report, steps[0]))
    with report.open("w") as file, contextlib.redirect_stdout(file):
        code = stage_process.main([str(spec), str(store)])
    sys.exit(code)


def die(report: Path, step: int) -> None:
    """No clean-up, no flush: as the kernel's OOM killer would."""
    report.write_text(json.dumps({"died_after_step": step, "time": time.time()}))
    os.kill(os.getpid(), signal.SIGKILL)


def watch_steps(steps: list[int]) -> None:
    """Keep the number of the last step whose point was emitted."""
    from alignment_core.stage_run import StageRun

    emit = StageRun.emit

    def watched(self: Any, step: int, *rest: Any, **named: Any) -> None:
        emit(self, step, *rest, **named)
        steps[0] = step

    StageRun.emit = watched  # type: ignore[method-assign]


def plant(name: str, number: int, when: str, kill: Callable[[], None]) -> None:
    """Replace a function by one that kills at its `number`-th call."""
    from alignment_core import checkpoint_folders, checkpoints, epochs, policy_gradient, stage_run, store

    owner_name, attribute = name.split(".")
    modules = {"checkpoints": checkpoints, "policy_gradient": policy_gradient, "epochs": epochs, "stage_run": stage_run}
    modules |= {"store": store, "checkpoint_folders": checkpoint_folders}
    owner: Any = {**modules, "Store": store.Store, "StageRun": stage_run.StageRun}[owner_name]
    original, calls = getattr(owner, attribute), [0]

    def planted(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and when == "before":
            kill()
        result = original(*given, **named)
        if calls[0] == number and when == "half":
            os.truncate(given[1], given[1].stat().st_size // 2)
        if calls[0] == number:
            kill()
        return result

    setattr(owner, attribute, planted)
