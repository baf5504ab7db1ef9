"""Every loss in plain sums over one sequence at a time, apart from the code it is to check.

Per sequence b: `log_probs[b]` and `old[b]` (T_b,), an advantage A_b. B sequences.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from alignment_core.training_config import LengthNormalization, LossType

CLIP: dict[LossType, tuple[float, float]] = {"grpo_clip": (0.2, 0.28), "cispo": (0.2, 0.28), "gspo": (0.04, 0.06)}
"""(low, high) of the losses that clip; a sequence's ratio stays closer to 1 than a token's."""
DIVISORS: dict[LengthNormalization, float] = {"masked_normalize": 128.0, "constant": 200.0}
"""What a sequence's sum is divided by, where that is a constant."""
KL_WEIGHT, CAP = 0.3, 1.05
BETA, SMOOTHING = 0.1, 0.1


def policy_loss(
    log_probs: Sequence[Tensor], old: Sequence[Tensor], advantages: Tensor, kind: LossType, mode: LengthNormalization
) -> Tensor:
    """The loss of a whole optimizer batch."""
    terms = [
        token_terms(kind, ours, before, float(advantage))
        for ours, before, advantage in zip(log_probs, old, advantages, strict=True)
    ]
    return normalized(terms, mode)


def token_terms(kind: LossType, log_probs: Tensor, old: Tensor, advantage: float) -> Tensor:
    """(T,) terms of one sequence."""
    if kind in ("no_baseline", "reinforce_with_baseline"):
        return -advantage * log_probs
    ratio = torch.exp(log_probs - old)
    if kind == "grpo_no_clip":
        return -advantage * ratio
    if kind == "grpo_clip":
        return -advantage * _pessimistic(kind, ratio, advantage)
    if kind == "cispo":
        low, high = CLIP[kind]
        weight = torch.tensor([min(max(float(r), 1 - low), 1 + high) for r in ratio]).to(log_probs)
        return -advantage * weight * log_probs
    if kind == "gspo":
        whole = torch.exp((log_probs - old).sum() / len(log_probs))
        return (-advantage * _pessimistic(kind, whole, advantage)).expand(len(log_probs))
    raise ValueError(f"no reference of loss type {kind!r}: write it out here")


def _pessimistic(kind: LossType, ratio: Tensor, advantage: float) -> Tensor:
    """The ratio without what it may not gain: its rise where A > 0, its fall where A < 0."""
    low, high = CLIP[kind]
    return ratio.clamp(max=1 + high) if advantage > 0 else ratio.clamp(min=1 - low)


def normalized(terms: Sequence[Tensor], mode: LengthNormalization) -> Tensor:
    """B vectors of terms -> a scalar."""
    if mode == "token_mean":
        return _sum(one.sum() for one in terms) / sum(len(one) for one in terms)
    if mode == "masked_mean":
        return _sum(one.sum() / len(one) for one in terms) / len(terms)
    return _sum(one.sum() / DIVISORS[mode] for one in terms) / len(terms)


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def guided_loss(
    log_probs: Sequence[Tensor], old: Sequence[Tensor], sampled: Sequence[Tensor], advantages: Tensor
) -> Tensor:
    """grpo_clip with capped importance weights, and a KL penalty to the sampler's policy as reference."""
    terms = []
    for ours, before, drawn, advantage in zip(log_probs, old, sampled, advantages, strict=True):
        trust = torch.exp(before - drawn).clamp(max=CAP)
        other = torch.exp(drawn - ours) - (drawn - ours) - 1
        terms.append(trust * token_terms("grpo_clip", ours, before, float(advantage)) + KL_WEIGHT * other)
    return normalized(terms, "masked_mean")


def fine_tuning_loss(log_probs: Sequence[Tensor]) -> Tensor:
    """Mean of -log p over all tokens."""
    return normalized([-one for one in log_probs], "token_mean")


def preference_loss(log_probs: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """DPO over pairs (0, 1), (2, 3), …: chosen, then rejected."""
    gains = [ours.sum() - theirs.sum() for ours, theirs in zip(log_probs, reference, strict=True)]
    total = torch.zeros(())
    for chosen, rejected in zip(gains[::2], gains[1::2], strict=True):
        margin = BETA * (chosen - rejected)
        likely, unlikely = torch.log1p(torch.exp(-margin)), torch.log1p(torch.exp(margin))
        total = total + (1 - SMOOTHING) * likely + SMOOTHING * unlikely
    return total / (len(gains) / 2)


def distance_to_clip(kind: LossType, old: Sequence[Tensor], log_probs: Sequence[Tensor]) -> float:
    """Least |log r - log bound| of the ratios that are clipped, nats: what rounding may move before one flips."""
    low, high = CLIP[kind]
    gaps = [(ours - before).detach() for ours, before in zip(log_probs, old, strict=True)]
    logs = torch.stack([gap.mean() for gap in gaps]) if kind == "gspo" else torch.cat(gaps)
    return min(float((logs - math.log(bound)).abs().min()) for bound in (1 - low, 1 + high))
