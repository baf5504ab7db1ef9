"""A training run under a budget of wall-clock time: whether one more step, and the evaluation after it, still fit.

A step is taken to last as long as the longest so far, and a response of the evaluation as long as the slowest of the
recent rollout batches took for one of its own.
"""

from collections import deque
from typing import NamedTuple

from alignment_core.processes import first_of
from alignment_core.runs import RunContext
from alignment_core.training_config import GRPOConfig

MARGIN = 1.5
"""Time kept for the evaluation, as a multiple of what was measured: it also scores entropies and grades."""
UNSEEN_SHARE = 0.02
"""Share of the budget kept besides, for what a run does not see: publishing weights, importing torch once more."""
RECENT = 8
"""Rollout batches that tell how long sampling takes: the first one warms up, and responses change their length."""


class EvaluationAhead(NamedTuple):
    """The evaluation that follows a run and must end within the same budget."""

    responses: int
    start_seconds: float
    """What it takes to load the model and to start the sampler, as it took here."""


class TimeBudget:
    """`config.time_budget_hours` of a run, and what was seen of its steps."""

    def __init__(
        self, config: GRPOConfig, run: RunContext, steps_done: int, ahead: EvaluationAhead | None = None
    ) -> None:
        """steps_done: of a run that goes on; only their sum is known, so their mean stands in for the longest."""
        self._config, self._run, self._ahead = config, run, ahead
        self._longest = run.seconds() / steps_done if steps_done else 0.0
        self._sampling = deque([self._longest], RECENT)

    def note(self, step_seconds: float, sampling_seconds: float) -> None:
        """One more step: all of it, and its rollout batch alone."""
        self._longest = max(self._longest, step_seconds)
        self._sampling.append(sampling_seconds)

    def is_spent(self) -> bool:
        """Whether the next step would end too late; said aloud if so. All processes hear the same answer."""
        if self._config.time_budget_hours is None:
            return False
        granted = 3600 * self._config.time_budget_hours
        kept = first_of(self._kept_seconds(granted))
        spent = first_of(self._run.seconds()) + first_of(self._longest) + kept > granted
        if spent:
            room = f", of which {kept:.0f} are kept for the evaluation" if self._ahead is not None else ""
            self._run.say(f"stops: another step would exceed the budget of {granted:.0f} seconds{room}")
        return spent

    def _kept_seconds(self, granted: float) -> float:
        """For the evaluation ahead, and for the last point of the validation curve before it."""
        if self._ahead is None:
            return 0.0
        responses = self._ahead.responses + self._config.validation_problems
        sampling = responses * max(self._sampling) / self._config.rollout_batch_size
        return UNSEEN_SHARE * granted + MARGIN * (self._ahead.start_seconds + sampling)
