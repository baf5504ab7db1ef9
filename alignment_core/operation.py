"""How a stage is operated on this machine: in no key, but worth knowing when it goes on elsewhere."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKPOINT_SECONDS = 60.0
"""A checkpoint is due this long after the last one: what a kill may cost."""

STAGE_PYTHON = "ALIGNFLOW_STAGE_PYTHON"
"""Names the interpreter of stages that sample with vllm, whose package may not go together with those of the flows."""


def number_setting(name: str, default: float, example: float | None = None, kind: str = "number of seconds") -> float:
    """The number, 0 or more, that an environment variable sets, else its default.

    example: what to set instead, in the message (default: the default). Raises ValueError for anything else, called no
    `kind` in the message.
    """
    text = os.environ.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not value >= 0:
        shown = default if example is None else example
        raise ValueError(f"{name}={text!r} is no {kind}: set e.g. {shown:g}, or unset it")
    return value


def checkpoint_period() -> float:
    """Seconds between checkpoints: ALIGNFLOW_CHECKPOINT_SECONDS, else CHECKPOINT_SECONDS; ValueError if not >= 0."""
    return number_setting("ALIGNFLOW_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS)


def stage_python(settings: Mapping[str, Any]) -> str | None:
    """The interpreter that a stage with these settings runs in, where it is not this one."""
    backend = (settings.get("sampling") or {}).get("backend")
    return os.environ.get(STAGE_PYTHON) or None if backend == "vllm" else None


def stage_environment() -> dict[str, str]:
    """The environment of that interpreter: it finds this package, and runs every stage itself."""
    here = str(Path(__file__).parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name != STAGE_PYTHON}
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def computed_on(settings: Mapping[str, object]) -> dict[str, object]:
    """What a bit-equal resume needs to find again, beside what is in the key; settings: those that round otherwise.

    Without the libraries where torch is not in use.
    """
    torch = sys.modules.get("torch")
    libraries = {} if torch is None else {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    return {**libraries, **settings}


def differing(then: Mapping[str, object], now: Mapping[str, object]) -> str:
    """What is computed on now, where it is not what the saved one had, in words; empty if nothing."""
    return ", ".join(f"{name} {then[name]} -> {now[name]}" for name in now if then.get(name, now[name]) != now[name])
