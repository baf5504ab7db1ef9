"""What a long computation may ask of the run it belongs to: record, checkpoint, resume.

The stage machinery (`alignment_core.stage`) supplies the real one; `MemoryRun` serves notebooks and tests.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol


class RunContext(Protocol):
    """The only thing a training loop knows of the world around it."""

    def emit(self, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """Record one point per step; `total` is the number of steps expected."""

    def emit_rows(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Record a table of samples, e.g. rollouts."""

    def set_aside(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> str:
        """Keep samples to look at, where a further attempt does not remove them; returns where, for an error."""

    def seconds(self) -> float:
        """Wall-clock time spent so far, attempts that were cut off included as far as their checkpoint covers them."""

    def checkpoint_due(self) -> bool:
        """Whether enough time has passed since the last checkpoint."""

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Have `write` fill a folder, then make it durable and complete in one step."""

    def latest_checkpoint(self) -> Path | None:
        """Folder of the newest complete checkpoint, if any."""

    def state_folder(self) -> Path | None:
        """A folder to make and fill with the state after the last step, for a longer run; None: nobody keeps it."""

    def say(self, text: str) -> None:
        """A line for whoever watches."""


class MemoryRun:
    """A run that keeps its record in memory and its checkpoints, if given a folder, on disk."""

    def __init__(self, folder: Path | None = None, checkpoint_seconds: float = float("inf")) -> None:
        self.folder = folder
        self.checkpoint_seconds = checkpoint_seconds
        self.points: list[tuple[int, dict[str, float]]] = []
        self.rows: list[tuple[str, int, list[dict[str, object]]]] = []
        self.lines: list[str] = []
        self._began = self._saved_at = time.monotonic()

    def emit(self, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """Keep the point in `points`."""
        self.points.append((step, dict(metrics)))

    def emit_rows(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Keep the table in `rows`."""
        self.rows.append((name, step, [dict(row) for row in rows]))

    def set_aside(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> str:
        """Keep the samples in `rows`, too."""
        self.emit_rows(name, step, rows)
        return f"the run's rows {name!r}"

    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    def checkpoint_due(self) -> bool:
        """True when `checkpoint_seconds` have passed and there is a folder to save to."""
        return self.folder is not None and time.monotonic() - self._saved_at >= self.checkpoint_seconds

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep only the newest checkpoint, in `folder/step-N`."""
        if self.folder is None:
            return
        previous = self.latest_checkpoint()
        fresh = self.folder / f"step-{step:08d}"
        fresh.mkdir(parents=True)
        write(fresh)
        if previous is not None:
            shutil.rmtree(previous)
        self._saved_at = time.monotonic()

    def latest_checkpoint(self) -> Path | None:
        """The one folder kept, or None."""
        kept = sorted(self.folder.glob("step-*")) if self.folder is not None else []
        return kept[-1] if kept else None

    def state_folder(self) -> Path | None:
        """Nowhere."""
        return None

    def say(self, text: str) -> None:
        """Keep the line in `lines`."""
        self.lines.append(text)
