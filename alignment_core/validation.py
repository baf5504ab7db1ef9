"""One point of a validation curve: sample dev problems, grade, average.

The request seeds are the same at every point, so that the curve moves because the weights do.
"""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.config import RewardName, SamplingConfig
from alignment_core.models import ComputeDtype
from alignment_core.overlap import Grader
from alignment_core.processes import gather, interleave, share_of
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.rollouts import completion_rows, grader_for
from alignment_core.runs import RunContext
from alignment_core.sampling import Sampler, build_requests, make_sampler
from alignment_core.stage_config import DPOStage, GRPOStage, SFTStage


def make_validator(
    problems: Sequence[Problem],
    limit: int,
    tokenizer: PreTrainedTokenizerBase,
    sampling: SamplingConfig,
    reward: RewardName | Grader,
    run: RunContext,
    seed: int,
    compute_dtype: ComputeDtype = "float32",
    sampler: Sampler | None = None,
    rows_logged: int = 4,
) -> Callable[[int, PreTrainedModel], dict[str, float]] | None:
    """The `validate` argument of the training loops, over the first `limit` problems; None if there are none.

    It also emits `rows_logged` completions as rows "validation". `sampler` shares a training loop's sampler
    (in bfloat16 each one holds a copy of the weights); by default one is made at the first point.
    """
    chosen = list(problems[:limit])
    if not chosen:
        return None
    requests = build_requests(chosen, tokenizer, 1, seed, "validation")
    grade = grader_for(reward)
    made: list[Sampler] = [] if sampler is None else [sampler]

    def validate(step: int, model: PreTrainedModel) -> dict[str, float]:
        if not made:
            made.append(make_sampler(model, tokenizer, sampling, compute_dtype))
        made[0].update_weights(model)
        own = share_of(len(requests))
        completions = made[0].sample([requests[index] for index in own], sampling)
        grades = grade([item.text for item in completions], [chosen[index].ground_truth for index in own])
        completions, grades = interleave(gather(completions)), interleave(gather(grades))
        run.emit_rows("validation", step, completion_rows(chosen, completions, grades, rows_logged))
        return validation_metrics(completions, grades)

    return validate


def stage_validator(
    stage: SFTStage | DPOStage | GRPOStage,
    limit: int,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    run: RunContext,
    sampler: Sampler | None = None,
    rows_logged: int = 4,
) -> Callable[[int, PreTrainedModel], dict[str, float]] | None:
    """`make_validator` as the settings of a training stage have it, over its dev problems."""
    return make_validator(
        problems,
        limit,
        tokenizer,
        stage.sampling,
        stage.reward,
        run,
        stage.seed,
        stage.compute_dtype,
        sampler,
        rows_logged,
    )


def validation_metrics(completions: Sequence[Completion], grades: Sequence[GradedResponse]) -> dict[str, float]:
    """eval/… means: accuracy, format rate, truncation rate and length over sequences, entropy (nats) over tokens."""
    count = len(completions)
    lengths = [len(item.response_ids) for item in completions]
    metrics = {
        "eval/accuracy": sum(verdict.reward > 0 for verdict in grades) / count,
        "eval/format_rate": sum(verdict.format_reward > 0 for verdict in grades) / count,
        "eval/truncation_rate": sum(item.finish_reason == "length" for item in completions) / count,
        "eval/mean_length": sum(lengths) / count,
    }
    entropies = [
        item.mean_entropy * length
        for item, length in zip(completions, lengths, strict=True)
        if item.mean_entropy is not None
    ]
    if len(entropies) == count:
        metrics["eval/entropy"] = sum(entropies) / sum(lengths)
    return metrics
