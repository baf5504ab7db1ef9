"""Who watches a study: the listener that stages report to while they run."""

import logging
from typing import Protocol

from alignment_core.events import Event
from alignment_core.redaction import redact
from alignment_core.stage import StageOutcome

logger = logging.getLogger("alignflow")


class Listener(Protocol):
    """Told of every stage; the command line draws it, a worker logs it."""

    def started(self, label: str, stage: str, reason: str) -> None:
        """A stage is about to be computed, and why."""

    def event(self, label: str, event: Event) -> None:
        """A running stage recorded something."""

    def finished(self, label: str, outcome: StageOutcome) -> None:
        """A stage has its artifact: cached, ran or resumed."""

    def failed(self, label: str, error: BaseException) -> None:
        """A stage raised."""


class LogListener:
    """Plain lines through `logging`: for workers, CI and pipes. At most one progress line per 10 s and stage."""

    PERIOD = 10.0

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)  # Prefect hands our lines on, but only those that pass the logger's level

    def started(self, label: str, stage: str, reason: str) -> None:
        """One line."""
        logger.info("%s: running (%s)", label, reason)

    def event(self, label: str, event: Event) -> None:
        """A line now and then, with the metrics people watch."""
        if event.kind == "say":
            logger.info("%s: %s", label, event.name)
        if event.kind != "point" or event.time - self._last.get(label, 0.0) < self.PERIOD:
            return
        self._last[label] = event.time
        logger.info("%s: step %d/%s %s", label, event.step, event.total or "?", headline(event.metrics))

    def finished(self, label: str, outcome: StageOutcome) -> None:
        """One line."""
        logger.info("%s: %s in %.1f s (%s)", label, outcome.how, outcome.seconds, outcome.reason)

    def failed(self, label: str, error: BaseException) -> None:
        """One line; the traceback follows from whoever handles the error."""
        logger.error("%s: failed: %s", label, redact(str(error)))


HEADLINE = ("eval/accuracy", "train/reward", "train/loss", "time/tokens_per_second", "grade/accuracy")


def headline(metrics: dict[str, float]) -> str:
    """The few metrics people watch, as text."""
    return "  ".join(f"{name.split('/')[-1]} {metrics[name]:.3g}" for name in HEADLINE if name in metrics)
