"""Rollout batches: which problems a step draws, their completions, verdicts and advantages.

Shapes: P problems, G completions per problem, B = P * G sequences, problem by problem.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment_core.advantages import group_advantages, group_statistics
from alignment_core.batching import TokenSequence
from alignment_core.config import GRPOConfig, RewardName, SamplingConfig
from alignment_core.random_draws import permutation
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.rewards import grade_batch
from alignment_core.sampling import Sampler, build_requests
from alignment_core.seeding import derive_seed

Grader = Callable[[Sequence[str], Sequence[str]], list[GradedResponse]]
"""(responses, ground truths) -> verdicts, one each."""


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
    """Draw P problems, sample G completions of each, grade them, compare within groups (by position, not by text)."""
    size = config.group_size
    drawn = draw_problems(problems, config.rollout_batch_size // size, seed, step)
    started = time.perf_counter()
    completions = sampler.sample(build_requests(drawn, tokenizer, size, seed, "rollout", step), sampling)
    generated = time.perf_counter()
    repeated = [problem for problem in drawn for _ in range(size)]
    grades = grade([item.text for item in completions], [problem.ground_truth for problem in repeated])
    graded = time.perf_counter()
    rewards = torch.tensor([verdict.reward for verdict in grades]).view(-1, size)
    advantages = group_advantages(rewards, config.advantage_eps, config.use_std_normalization)
    metrics = {
        "train/advantage_std": advantages.std().item() if advantages.numel() > 1 else 0.0,
        "train/zero_variance_share": group_statistics(rewards).uniform_groups,
        "time/generate": generated - started,
        "time/grade": graded - generated,
    }
    weights = rewards if config.loss_type == "no_baseline" else advantages
    return Rollout(repeated, completions, grades, weights.flatten(), metrics | completion_metrics(completions, grades))


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
