"""Data parallel training: several processes, each with a whole model, one optimizer batch among them.

accelerate (or torchrun) starts the processes and names their devices; torch.distributed carries what they tell each
other. Each process takes every W-th micro-batch and every W-th prompt. Shares of a loss are already divided by the
whole batch's denominator, so gradients, losses and statistics are plain sums over processes; every process then takes
the same update. Only the first one writes the record and the checkpoints.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from alignment_core.runs import RunContext

T = TypeVar("T")


def join_processes() -> torch.device | None:
    """Join the processes that `accelerate launch` or torchrun started; this one's device, or None if it is alone.

    Raises ImportError if there are several and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return None
    from accelerate import PartialState

    device: torch.device = PartialState(cpu=not torch.cuda.is_available()).device
    return device


def leave_processes() -> None:
    """Undo `join_processes`: this process is alone again, and may join others later."""
    if distributed.is_available() and distributed.is_initialized():
        from accelerate import PartialState

        distributed.destroy_process_group()
        PartialState._reset_state()  # accelerate keeps one state per process, and has no other way to part from it


def process_count() -> int:
    """W: processes that train together; 1 without torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if process_count() > 1 else 0


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's value, in place. Every process must call it, in the same order, here and below."""
    if process_count() > 1:
        distributed.all_reduce(value)
    return value


def sum_gradients(model: nn.Module) -> None:
    """Sum each weight's gradient over all processes; each weight must have one."""
    if process_count() > 1:
        for weight in model.parameters():
            if weight.grad is not None:
                distributed.all_reduce(weight.grad)


def gather(value: T) -> list[T]:
    """Every process's value, by rank; [value] for a process alone."""
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    distributed.all_gather_object(found, value)
    return found


def first_of(value: T) -> T:
    """The first process's value, in all of them."""
    return gather(value)[0]


def share_of(count: int) -> range:
    """Which of `count` items this process takes."""
    return range(process_rank(), count, process_count())


def interleave(parts: Iterable[Sequence[T]]) -> list[T]:
    """The items whose shares (`share_of`) the processes give, in their order again."""
    shares = list(parts)
    return [shares[index % len(shares)][index // len(shares)] for index in range(sum(map(len, shares)))]


class FollowerRun:
    """The run of every process but the first: reads the first one's checkpoints and writes nothing."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    def emit(self, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """Nothing."""

    def emit_rows(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Nothing."""

    def set_aside(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> str:
        """Nothing: the first process keeps its own share."""
        return "the first process's record"

    def seconds(self) -> float:
        """Nothing that counts: `first_of` takes the first process's."""
        return 0.0

    def checkpoint_due(self) -> bool:
        """Never."""
        return False

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Nothing."""

    def latest_checkpoint(self) -> Path | None:
        """The first process's."""
        return self._run.latest_checkpoint()

    def state_folder(self) -> Path | None:
        """Nowhere."""
        return None

    def say(self, text: str) -> None:
        """Nothing."""


def own_run(run: RunContext) -> RunContext:
    """What this process may do with the run: all in the first one, read in the others."""
    return run if process_rank() == 0 else FollowerRun(run)
