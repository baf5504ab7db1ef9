"""How a stage is operated on this machine: in no key, but worth knowing when it goes on elsewhere."""

import os
import sys
from collections.abc import Mapping

CHECKPOINT_SECONDS = 60.0
"""A checkpoint is due this long after the last one: what a kill may cost."""


def checkpoint_period() -> float:
    """Seconds between checkpoints: ALIGNFLOW_CHECKPOINT_SECONDS, else CHECKPOINT_SECONDS; ValueError if not >= 0."""
    text = os.environ.get("ALIGNFLOW_CHECKPOINT_SECONDS", "").strip()
    try:
        period = float(text or CHECKPOINT_SECONDS)
    except ValueError:
        period = -1.0
    if not period >= 0:
        raise ValueError(f"ALIGNFLOW_CHECKPOINT_SECONDS={text!r} is no number of seconds: set e.g. 60, or unset it")
    return period


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
