"""What is differentiated: every loss under every length normalization that its settings allow, both ways.

Each objective has the core's own pieces, put together as the loops do, and the plain sums it must equal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from alignment_core.losses import (
    aggregate,
    batch_denominator,
    dpo_loss,
    importance_weights,
    kl_to_reference,
    negative_log_likelihood,
    policy_gradient_loss,
)
from alignment_core.training_config import CLIPPED, GRPOConfig, LengthNormalization, LossType
from benchmarks.gpu import plain_losses
from benchmarks.gpu.paths import Case, Scores, Share, spread
from benchmarks.gpu.plain_losses import BETA, CAP, CLIP, DIVISORS, KL_WEIGHT, SMOOTHING


@dataclass(frozen=True)
class Objective:
    """One loss of the whole batch, as the core computes it and in plain sums."""

    name: str
    share: Share
    plain: Callable[[Sequence[Tensor]], Tensor]
    """Of the log-probs, a vector per sequence."""
    known: bool = False
    """Whether the loops tell the head its gradient beforehand."""
    together: int = 1


def objectives(case: Case, reference: Scores) -> list[Objective]:
    """Off-policy: every loss and normalization; on-policy: every loss; then what else a loop may add up."""
    kinds: tuple[LossType, ...] = get_args(LossType)
    modes: tuple[LengthNormalization, ...] = get_args(LengthNormalization)
    off_policy = [
        _policy(case, old_log_probs(case, reference, kind), kind, mode)
        for kind in kinds
        for mode in modes
        if allowed(kind, mode)
    ]
    on_policy = [_policy(case, None, kind, "masked_mean") for kind in kinds]
    return [*off_policy, *on_policy, _guided(case, reference), _fine_tuning(case), _preference(case, reference)]


def allowed(kind: LossType, mode: LengthNormalization) -> bool:
    """Whether the settings take this pair."""
    clip = dict(zip(("clip_low", "clip_high"), CLIP[kind], strict=True)) if kind in CLIPPED else {}
    constant = DIVISORS["masked_normalize"] if mode == "masked_normalize" else None
    try:
        GRPOConfig(loss_type=kind, length_normalization=mode, normalize_constant=constant, **clip)
    except ValidationError:
        return False
    return True


def old_log_probs(case: Case, reference: Scores, kind: LossType) -> list[Tensor]:
    """Those of an older policy, a float64 vector per sequence, far from the clip's edges."""
    shift = case.sequence_shift if kind == "gspo" else case.token_shift
    return list((reference.log_probs.detach() - shift).split(case.lengths))


def _policy(case: Case, old: list[Tensor] | None, kind: LossType, mode: LengthNormalization) -> Objective:
    denominator = batch_denominator(case.lengths, mode)

    def share(rows: Sequence[int], log_probs: Tensor, mask: Tensor) -> Tensor:
        before = log_probs.detach() if old is None else spread(old, rows, mask, log_probs)
        loss = policy_gradient_loss(kind, log_probs, _weights(case, rows, log_probs), before, CLIP.get(kind), mask)
        return aggregate(loss.loss, mask, mode, denominator, DIVISORS.get(mode))

    def plain(log_probs: Sequence[Tensor]) -> Tensor:
        before = [one.detach() for one in log_probs] if old is None else old
        return plain_losses.policy_loss(log_probs, before, case.weights, kind, mode)

    name = f"{kind} {mode}" + (" on-policy" if old is None else "")
    return Objective(name, share, plain, known=old is None)


def _guided(case: Case, reference: Scores) -> Objective:
    """Importance weights and a KL penalty beside the clip; the sampler's policy serves as the reference too."""
    old = old_log_probs(case, reference, "grpo_clip")
    sampled = list((reference.log_probs.detach() - case.token_shift / 2).split(case.lengths))

    def share(rows: Sequence[int], log_probs: Tensor, mask: Tensor) -> Tensor:
        before, drawn = (spread(values, rows, mask, log_probs) for values in (old, sampled))
        weights = _weights(case, rows, log_probs)
        loss = policy_gradient_loss("grpo_clip", log_probs, weights, before, CLIP["grpo_clip"], mask).loss
        loss = loss * importance_weights(before, drawn, CAP) + KL_WEIGHT * kl_to_reference(log_probs, drawn)
        return aggregate(loss, mask, "masked_mean", len(case.sequences))

    return Objective(
        "grpo_clip masked_mean with importance weights and KL",
        share,
        lambda log_probs: plain_losses.guided_loss(log_probs, old, sampled, case.weights),
    )


def _fine_tuning(case: Case) -> Objective:
    denominator = batch_denominator(case.lengths, "token_mean")

    def share(_: Sequence[int], log_probs: Tensor, mask: Tensor) -> Tensor:
        return aggregate(negative_log_likelihood(log_probs), mask, "token_mean", denominator)

    return Objective("sft token_mean", share, plain_losses.fine_tuning_loss, known=True)


def _preference(case: Case, reference: Scores) -> Objective:
    start = old_log_probs(case, reference, "grpo_clip")

    def share(rows: Sequence[int], log_probs: Tensor, _: Tensor) -> Tensor:
        policy = log_probs.sum(-1).view(-1, 2)
        before = torch.stack([start[row].sum() for row in rows]).to(policy).view(-1, 2)
        losses = dpo_loss(policy[:, 0], policy[:, 1], before[:, 0], before[:, 1], BETA, SMOOTHING)
        return losses.sum() / (len(case.sequences) / 2)

    return Objective("dpo", share, lambda log_probs: plain_losses.preference_loss(log_probs, start), together=2)


def _weights(case: Case, rows: Sequence[int], log_probs: Tensor) -> Tensor:
    return case.weights[list(rows)].to(log_probs)[:, None]
