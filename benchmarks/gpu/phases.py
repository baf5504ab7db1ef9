"""One step of the policy-gradient loop split at its own seams, grading beside sampling told as such."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from alignment_core.batching import TokenSequence
from alignment_core.config import SamplingConfig
from alignment_core.records import Completion, GradedResponse
from alignment_core.rollouts import grader_for
from alignment_core.runs import MemoryRun
from alignment_core.sampling import Finished, Progress, PromptRequest, Sampler
from alignment_core.seeding import derive_seed
from benchmarks.gpu import common


@dataclass(frozen=True)
class Step:
    """A step from the new weights' way to the sampler to its record."""

    seconds: float
    """By the clock's first and last reading."""
    spans: dict[str, common.Span]
    """sync, generate, grade, update, without gap or overlap: they add up to `seconds`."""


class PhasedRun(MemoryRun):
    """Sampler and record of a loop at once; the device is waited for at every seam, as the loop itself need not.

    Grading counts as a phase only after the last response had ended, by the loop's clock; what went on beside sampling
    costs the step nothing, and is metric time/grade_overlapped.
    """

    def __init__(self, device: torch.device, sampler: Sampler) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._rollout: list[Completion] = []
        self._sampler, self._watch = sampler, common.Stopwatch(device)
        self._grade = grader_for("r1_zero")
        self._spans: dict[str, common.Span] = {}
        self._began = 0.0

    @property
    def sequences(self) -> list[TokenSequence]:
        """Of the last rollout."""
        return [TokenSequence(item.prompt_ids, item.response_ids) for item in self._rollout]

    def update_weights(self, model: PreTrainedModel) -> None:
        """The loop's first act of a step."""
        self._watch.restart()
        self._began = self._watch.began
        self._sampler.update_weights(model)
        self._spans = {"sync": self._watch.lap()}

    def sample(
        self,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        on_progress: Progress | None = None,
        on_finished: Finished | None = None,
    ) -> list[Completion]:
        """Timed sampling; the completions are kept."""
        self._rollout = self._sampler.sample(requests, config, on_progress, on_finished)
        self._spans["generate"] = self._watch.lap()
        return self._rollout

    def grade(self, responses: Sequence[str], ground_truths: Sequence[str]) -> list[GradedResponse]:
        """The loop's grader at work, its verdicts replaced: noise is never right, and equal rewards teach nothing.

        Rewards are numbers drawn from the response alone, so that every sequence has an advantage and is trained on.
        """
        return [
            grade.model_copy(update={"reward": derive_seed("reward", text) % 1000 / 1000})
            for grade, text in zip(self._grade(responses, ground_truths), responses, strict=True)
        ]

    def emit(self, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """The end of a step."""
        rest, graded = self._watch.lap(), metrics["time/grade"]
        self._spans["grade"] = common.Span(graded, None)
        self._spans["update"] = common.Span(rest.seconds - graded, rest.peak_gib)
        self.steps.append(Step(self._watch.began - self._began, self._spans))
        super().emit(step, metrics, total)


def attention_line(lines: Sequence[str]) -> str | None:
    """What a loop said of its attention, kernel included."""
    return next((line for line in lines if line.startswith("attention: ")), None)
