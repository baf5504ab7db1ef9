"""Group-relative advantages: each reward against the other samples of the same problem.

Shapes: P problems, G completions per problem. Groups are rows, never recovered from equal prompt texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment_core.training_config import Baseline


@dataclass(frozen=True)
class GroupStatistics:
    """What the rewards of one rollout batch look like."""

    mean: float
    std: float
    """Unbiased standard deviation over all P x G rewards; 0 for a single one."""
    minimum: float
    maximum: float
    group_std: float
    """Mean over groups of the unbiased standard deviation within the group; 0 for G = 1."""
    uniform_groups: float
    """Share of groups whose rewards are all equal; they have advantage 0 and teach nothing."""


def group_advantages(rewards: Tensor, eps: float, normalize_by_std: bool, baseline: Baseline = "group_mean") -> Tensor:
    """A = (r - mean(group)) / (std(group) + eps), or r - mean(group) without `normalize_by_std`.

    GRPO (arXiv:2402.03300, section 4.1.2); without the division Dr. GRPO (arXiv:2503.20783). With the baseline
    `leave_one_out` A = r - mean(the others of the group), RLOO (arXiv:2402.14740), which is G / (G - 1) times r -
    mean(group), never divided by a standard deviation. `rewards` is (P, G), the result too, in float32 at least. The
    standard deviation is the unbiased one (G - 1). A group of equal rewards gets exactly 0: its mean may be off by a
    rounding, which eps would blow up; so does a group of one. Raises ValueError for another shape, rewards that are not
    finite, or leave_one_out with `normalize_by_std`.
    """
    rewards = _checked(rewards)
    size = rewards.shape[1]
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    if baseline == "leave_one_out":
        if normalize_by_std:
            raise ValueError("leave_one_out is not divided by a standard deviation: set normalize_by_std to False")
        centered = centered * (size / max(size - 1, 1))
    elif normalize_by_std and size > 1:
        centered = centered / (rewards.std(dim=1, keepdim=True) + eps)
    return torch.where(uniform_groups(rewards), torch.zeros_like(centered), centered)


def informative_first(rewards: Tensor, count: int) -> list[int]:
    """`count` of N groups, rewards (N, G): the first ones with unequal rewards, then, if short, the first others.

    In ascending order. Groups of equal reward have advantage 0: dynamic sampling (arXiv:2503.14476, eq. 11) replaces
    them. Raises ValueError if there are fewer than `count` groups.
    """
    if len(rewards) < count:
        raise ValueError(f"{count} groups wanted, and there are {len(rewards)}: sample more")
    uniform = uniform_groups(rewards).flatten().tolist()
    order = sorted(range(len(rewards)), key=lambda group: (uniform[group], group))
    return sorted(order[:count])


def overlong_penalties(lengths: Sequence[int], max_tokens: int, buffer: int, scale: float = 1.0) -> list[float]:
    """Reward (0 or less) that DAPO's soft overlong punishment adds (arXiv:2503.14476, eq. 13), one per length.

    0 up to max_tokens - buffer response tokens, then falling linearly to -scale at max_tokens; no buffer, no penalty.
    """
    if buffer == 0:
        return [0.0] * len(lengths)
    return [-scale * min(max(length - (max_tokens - buffer), 0) / buffer, 1.0) for length in lengths]


def group_statistics(rewards: Tensor) -> GroupStatistics:
    """Statistics of (P, G) rewards, for the training record; same errors as `group_advantages`."""
    rewards = _checked(rewards)
    grouped = rewards.shape[1] > 1
    return GroupStatistics(
        mean=rewards.mean().item(),
        std=rewards.std().item() if rewards.numel() > 1 else 0.0,
        minimum=rewards.min().item(),
        maximum=rewards.max().item(),
        group_std=rewards.std(dim=1).mean().item() if grouped else 0.0,
        uniform_groups=uniform_groups(rewards).float().mean().item(),
    )


def uniform_groups(rewards: Tensor) -> Tensor:
    """(P, 1) bool: all rewards of the group are equal; (P, G) rewards."""
    return rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)


def _checked(rewards: Tensor) -> Tensor:
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}: give (problems, completions per problem)")
    if not rewards.isfinite().all():
        raise ValueError("rewards hold NaN or infinity: check the reward function")
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))
