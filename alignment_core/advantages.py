"""Group-relative advantages: each reward against the other samples of the same problem.

Shapes: P problems, G completions per problem. Groups are rows, never recovered from equal prompt texts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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


def group_advantages(rewards: Tensor, eps: float, normalize_by_std: bool) -> Tensor:
    """A = (r - mean(group)) / (std(group) + eps), or r - mean(group) without `normalize_by_std`.

    `rewards` is (P, G), the result too, in float32 at least. The standard deviation is the unbiased one (G - 1).
    A group of equal rewards gets exactly 0: its mean may be off by a rounding, which eps would blow up.
    Raises ValueError for another shape or rewards that are not finite.
    """
    rewards = _checked(rewards)
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    if normalize_by_std and rewards.shape[1] > 1:
        centered = centered / (rewards.std(dim=1, keepdim=True) + eps)
    return torch.where(_uniform(rewards), torch.zeros_like(centered), centered)


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
        uniform_groups=_uniform(rewards).float().mean().item(),
    )


def _uniform(rewards: Tensor) -> Tensor:
    """(P, 1) bool: all rewards of the group are equal."""
    return rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)


def _checked(rewards: Tensor) -> Tensor:
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}: give (problems, completions per problem)")
    if not rewards.isfinite().all():
        raise ValueError("rewards hold NaN or infinity: check the reward function")
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))
