"""A run that prints and writes each point as it comes, and ends its loop before a deadline."""

import json
from collections.abc import Mapping, Sequence

from alignment_core.runs import MemoryRun
from benchmarks.gpu import common


class OutOfTime(Exception):
    """The next step would pass the deadline; the weights are those after the step just reported."""


class TimedRun(MemoryRun):
    """Writes every point and table as a JSON line, and ends the loop before its deadline."""

    def __init__(self, phase: str, report: common.Report, clock: common.Clock, seconds: float) -> None:
        super().__init__()
        self._phase, self._report, self._clock = phase, report, clock
        self._deadline = clock.spent + seconds
        self._started = self._last = clock.spent
        self._longest = 0.0
        for earlier in report.path.parent.glob(f"{phase}-[!t]*.jsonl"):
            earlier.unlink()

    def emit(self, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """Record the point. Raises OutOfTime when the longest step so far would not fit any more."""
        now = self._clock.spent
        self._longest = max(self._longest, now - self._last)
        self._last = now
        point = {"step": step, "seconds": round(now - self._started, 2), **metrics}
        super().emit(step, point)
        self._report.put(f"curve/{self._phase}", [values for _, values in self.points])
        self._append("points", point)
        print(f"{self._phase} {_short(point)}", flush=True)
        if now + self._longest > self._deadline:
            raise OutOfTime(f"{self._phase} stopped after step {step}")

    def emit_rows(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Append the table to the phase's own file."""
        for row in rows:
            self._append(name, {"step": step, **row})

    def say(self, text: str) -> None:
        """Print the line too."""
        super().say(text)
        print(f"{self._phase}: {text}", flush=True)

    def _append(self, name: str, row: Mapping[str, object]) -> None:
        with (self._report.path.parent / f"{self._phase}-{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _short(point: Mapping[str, float]) -> str:
    names = (
        "step", "seconds", "train/loss", "train/reward", "train/format_reward", "train/mean_length", "train/entropy",
        "train/grad_norm", "train/sampler_gap", "eval/accuracy", "eval/format_rate", "time/generate", "time/update",
    )  # fmt: skip
    return " ".join(f"{name.rpartition('/')[2]}={point[name]:.4g}" for name in names if name in point)
