"""Rollout batches: which problems a step draws, their completions, verdicts and advantages.

Shapes: P problems, G completions per problem, B = P * G sequences, problem by problem.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment_core.advantages import (
    group_advantages,
    group_statistics,
    informative_first,
    overlong_penalties,
    uniform_groups,
)
from alignment_core.batching import TokenSequence
from alignment_core.config import RewardName, SamplingConfig
from alignment_core.overlap import Grader, OverlappedGrading
from alignment_core.processes import gather, interleave, share_of
from alignment_core.random_draws import permutation
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.rewards import grade_batch
from alignment_core.sampling import Sampler, build_requests
from alignment_core.seeding import derive_seed
from alignment_core.training_config import GRPOConfig


@dataclass(frozen=True)
class Rollout:
    """B graded completions of one policy, and what they teach."""

    problems: list[Problem]
    """B, each problem G times."""
    completions: list[Completion]
    grades: list[GradedResponse]
    weights: Tensor
    """(B,) what multiplies -log p: advantages, or raw rewards for `no_baseline`."""
    metrics: dict[str, float]

    @property
    def sequences(self) -> list[TokenSequence]:
        """Token ids as they were sampled; text is never tokenized again."""
        return [TokenSequence(item.prompt_ids, item.response_ids) for item in self.completions]


def grader_for(reward: RewardName | Grader) -> Grader:
    """The grading function a reward name stands for, in a grading child; a function is returned as it is."""
    return partial(grade_batch, reward=reward, workers=1) if isinstance(reward, str) else reward


def draw_problems(problems: Sequence[Problem], count: int, seed: int, step: int) -> list[Problem]:
    """Problems of step `step` (0-based): the next `count` of an endless sequence of seeded shuffles.

    Within an epoch none comes twice; a step that crosses the end of one may meet a problem again.
    """
    if not problems:
        raise ValueError("no problems to draw from: the training split is empty")
    drawn = []
    for position in range(step * count, (step + 1) * count):
        epoch, offset = divmod(position, len(problems))
        drawn.append(problems[permutation(len(problems), derive_seed(seed, "problems", epoch))[offset]])
    return drawn


def collect_rollout(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    config: GRPOConfig,
    sampling: SamplingConfig,
    grade: Grader,
    seed: int,
    step: int,
) -> Rollout:
    """Draw P problems, sample G completions of each, grade them, compare within groups (by position, not by text).

    With dynamic sampling further rounds of P problems follow while fewer than P groups have unequal rewards, before a
    penalty for length: a group without a right answer teaches no answer, however its lengths differ. What trains are
    the first P of those, topped up with others if the rounds do not yield enough. Metrics are of all that
    was sampled, those of advantages of what trains.
    """
    size = config.group_size
    wanted = config.rollout_batch_size // size
    rounds = []
    for number in range(config.dynamic_sampling_rounds + 1):
        seed_parts = (seed, "rollout", step, number) if number else (seed, "rollout", step)
        drawn = draw_problems(problems, wanted, derive_seed(seed, "round", number) if number else seed, step)
        rounds.append(_sample_and_grade(sampler, tokenizer, drawn, size, sampling, grade, seed_parts))
        graded = _graded_rewards(rounds, size)
        if int((~uniform_groups(graded)).sum()) >= wanted:
            break
    groups = informative_first(graded, wanted)
    return _assembled(rounds, graded, groups, config, sampling.max_tokens)


@dataclass(frozen=True)
class _Round:
    """Whole groups of graded completions, in a row."""

    problems: list[Problem]
    completions: list[Completion]
    grades: list[GradedResponse]
    generate_seconds: float
    grade_seconds: float
    """After the last response had ended."""
    overlapped_seconds: float
    """Of grading beside sampling."""


def _sample_and_grade(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    drawn: Sequence[Problem],
    size: int,
    sampling: SamplingConfig,
    grade: Grader,
    seed_parts: tuple[int | str, ...],
) -> _Round:
    repeated = [problem for problem in drawn for _ in range(size)]
    requests = build_requests(drawn, tokenizer, size, *seed_parts)
    own = share_of(len(requests))
    started = time.perf_counter()
    with OverlappedGrading(grade, [repeated[index].ground_truth for index in own]) as grading:
        completions = sampler.sample([requests[index] for index in own], sampling, on_finished=grading.finished)
        generated = time.perf_counter()
        grades = grading.verdicts([item.text for item in completions])
    return _Round(
        repeated,
        interleave(gather(completions)),
        interleave(gather(grades)),
        generated - started,
        time.perf_counter() - generated,
        grading.seconds_before(generated),
    )


def _graded_rewards(rounds: Sequence[_Round], size: int) -> Tensor:
    """(groups, G) rewards of the grader."""
    return torch.tensor([verdict.reward for one in rounds for verdict in one.grades]).view(-1, size)


def _length_penalties(completions: Sequence[Completion], config: GRPOConfig, max_tokens: int) -> Tensor:
    """(groups, G) what is added to the grader's rewards: 0 or less, for overlong responses."""
    lengths = [len(item.response_ids) for item in completions]
    penalties = overlong_penalties(lengths, max_tokens, config.overlong_buffer, config.overlong_penalty)
    return torch.tensor(penalties).view(-1, config.group_size)


def _assembled(
    rounds: Sequence[_Round], graded: Tensor, groups: Sequence[int], config: GRPOConfig, max_tokens: int
) -> Rollout:
    """The rollout of the chosen groups, with metrics of all."""
    size = config.group_size
    rows = [group * size + offset for group in groups for offset in range(size)]
    problems, completions, grades = (
        [item for one in rounds for item in getattr(one, part)] for part in ("problems", "completions", "grades")
    )
    rewards = graded + _length_penalties(completions, config, max_tokens)
    kept = rewards[list(groups)]
    advantages = group_advantages(kept, config.advantage_eps, config.use_std_normalization, config.baseline)
    metrics = completion_metrics(completions, grades) | {
        "train/zero_variance_share": group_statistics(graded).uniform_groups,
        "train/groups_sampled": float(len(rewards)),
        "train/tokens": float(sum(len(completions[row].response_ids) for row in rows)),
        "train/tokens_sampled": float(sum(len(item.response_ids) for item in completions)),
        "train/overlong_penalty": _mean([verdict.reward for verdict in grades]) - rewards.mean().item()
        if config.overlong_buffer
        else 0.0,
        "train/reward_std": group_statistics(rewards).std,
        "train/advantage_mean": advantages.mean().item(),
        "train/advantage_std": advantages.std().item() if advantages.numel() > 1 else 0.0,
        "train/advantage_min": advantages.min().item(),
        "train/advantage_max": advantages.max().item(),
        "time/generate": sum(one.generate_seconds for one in rounds),
        "time/grade": sum(one.grade_seconds for one in rounds),
        "time/grade_overlapped": sum(one.overlapped_seconds for one in rounds),
    }
    weights = kept if config.loss_type == "no_baseline" else advantages
    return Rollout(
        [problems[row] for row in rows],
        [completions[row] for row in rows],
        [grades[row] for row in rows],
        weights.flatten(),
        metrics,
    )


def completion_metrics(completions: Sequence[Completion], grades: Sequence[GradedResponse]) -> dict[str, float]:
    """train/… means over sequences, and counts; a mean over no sequence is left out."""
    lengths = [len(item.response_ids) for item in completions]
    correct = [length for length, verdict in zip(lengths, grades, strict=True) if verdict.reward > 0]
    incorrect = [length for length, verdict in zip(lengths, grades, strict=True) if verdict.reward <= 0]
    metrics = {
        "train/reward": _mean([verdict.reward for verdict in grades]),
        "train/format_reward": _mean([verdict.format_reward for verdict in grades]),
        "train/answer_reward": _mean([verdict.answer_reward for verdict in grades]),
        "train/mean_length": _mean(lengths),
        "train/truncation_rate": _mean([item.finish_reason == "length" for item in completions]),
        "train/suspicious": float(sum(verdict.suspicious for verdict in grades)),
        "train/timeouts": float(sum(verdict.status == "timeout" for verdict in grades)),
        "train/grading_errors": float(sum(verdict.status == "error" for verdict in grades)),
        "train/tokens": float(sum(lengths)),
    }
    if correct:
        metrics["train/mean_length_correct"] = _mean(correct)
    if incorrect:
        metrics["train/mean_length_incorrect"] = _mean(incorrect)
    return metrics


def completion_rows(
    problems: Sequence[Problem], completions: Sequence[Completion], grades: Sequence[GradedResponse], count: int
) -> list[dict[str, object]]:
    """A table of up to `count` completions, spread evenly over the batch."""
    stride = max(len(completions) // max(count, 1), 1)
    chosen = list(zip(problems, completions, grades, strict=True))[::stride][:count]
    return [
        {
            "problem_id": problem.id,
            "prompt": problem.prompt,
            "response": completion.text,
            "ground_truth": problem.ground_truth,
            "reward": grade.reward,
            "format_reward": grade.format_reward,
            "answer_reward": grade.answer_reward,
            "length": len(completion.response_ids),
            "finish_reason": completion.finish_reason,
            "mean_entropy": completion.mean_entropy,
        }
        for problem, completion, grade in chosen
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
