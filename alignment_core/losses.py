"""Losses per token, and the one place where they become a number.

Shapes: B sequences, T tokens. Every loss is a (B, T) tensor; `aggregate` reduces it to a SUM over this
micro-batch divided by the optimizer batch's own count, so that the micro-batches' results add up to the
loss, and their gradients to the gradient, of the whole batch, however it is split.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment_core.config import LengthNormalization, LossType
from alignment_core.masking import masked_mean, masked_normalize, masked_sum

MAX_LOG_RATIO = 20.0
"""Bound of |log ratio| before exp: e^20 is still finite in every type, and no sane update comes near."""


@dataclass
class TokenLoss:
    """A per-token loss with per-token statistics of the same shape."""

    loss: Tensor
    """(B, T)."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """(B, T) each, no gradient; `token_sums` reduces them."""


@dataclass
class DPOLoss:
    """A preference loss per pair, with the implicit rewards it compares."""

    loss: Tensor
    """(B,)."""
    chosen_rewards: Tensor
    """(B,) beta x (policy - reference) log-probability of the chosen responses; no gradient."""
    rejected_rewards: Tensor
    """(B,) the same of the rejected responses; no gradient."""

    @property
    def accuracy(self) -> Tensor:
        """Share of pairs whose chosen response has the higher implicit reward."""
        return (self.chosen_rewards > self.rejected_rewards).float().mean()


def negative_log_likelihood(log_probs: Tensor) -> Tensor:
    """-log p per token: (B, T) gives (B, T)."""
    return -log_probs


def reinforce_loss(advantages: Tensor, log_probs: Tensor) -> Tensor:
    """-A log p per token: advantages (or rewards) (B, 1), log-probs (B, T), result (B, T)."""
    return -advantages.detach() * log_probs


def probability_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """r = exp(log p - log p_old) per token, log-ratio clamped; no gradient through `old_log_probs`."""
    return _log_ratio(log_probs, old_log_probs).exp()


def grpo_clip_loss(advantages: Tensor, log_probs: Tensor, old_log_probs: Tensor, cliprange: float) -> TokenLoss:
    """-min(r A, clip(r, 1 - c, 1 + c) A) per token (PPO's clipped objective, arXiv:1707.06347, eq. 7).

    Advantages (B, 1), log-probs (B, T). Statistics: those of the ratio, and where the clip is what was taken:
    `clip_fraction_low` for r < 1 - c with A < 0, `clip_fraction_high` for r > 1 + c with A > 0.
    """
    advantages = advantages.detach()
    ratio = probability_ratio(log_probs, old_log_probs)
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    statistics = _ratio_statistics(log_probs, old_log_probs)
    statistics["clip_fraction_low"] = ((ratio < 1 - cliprange) & (advantages < 0)).to(loss.dtype)
    statistics["clip_fraction_high"] = ((ratio > 1 + cliprange) & (advantages > 0)).to(loss.dtype)
    return TokenLoss(loss, statistics)


def grpo_no_clip_loss(advantages: Tensor, log_probs: Tensor, old_log_probs: Tensor) -> TokenLoss:
    """-r A per token: the off-policy objective without the clip."""
    loss = -probability_ratio(log_probs, old_log_probs) * advantages.detach()
    return TokenLoss(loss, _ratio_statistics(log_probs, old_log_probs))


def policy_gradient_loss(
    loss_type: LossType,
    log_probs: Tensor,
    weights: Tensor,
    old_log_probs: Tensor | None = None,
    cliprange: float | None = None,
) -> TokenLoss:
    """The per-token loss that `loss_type` names.

    `weights` (B, 1) are raw rewards for `no_baseline` and advantages for the others. The two grpo types need
    `old_log_probs` (B, T); in a strictly on-policy step those are `log_probs.detach()`. `grpo_clip` needs `cliprange`.
    Raises ValueError for a missing argument or an unknown type.
    """
    if loss_type in ("no_baseline", "reinforce_with_baseline"):
        return TokenLoss(reinforce_loss(weights, log_probs))
    if old_log_probs is None:
        raise ValueError(f"loss_type {loss_type!r} needs old_log_probs (on-policy: log_probs.detach())")
    if loss_type == "grpo_no_clip":
        return grpo_no_clip_loss(weights, log_probs, old_log_probs)
    if loss_type != "grpo_clip":
        raise ValueError(
            f"unknown loss_type {loss_type!r}: take no_baseline, reinforce_with_baseline, grpo_clip or grpo_no_clip"
        )
    if cliprange is None:
        raise ValueError("loss_type 'grpo_clip' needs cliprange, e.g. 0.2")
    return grpo_clip_loss(weights, log_probs, old_log_probs, cliprange)


def batch_denominator(response_lengths: Sequence[int], mode: LengthNormalization) -> int:
    """What `aggregate` divides by, from the response lengths of the WHOLE optimizer batch.

    Its response tokens for `token_mean`, its sequences for the others; empty responses count as sequences.
    Raises ValueError if that is 0.
    """
    count = sum(response_lengths) if mode == "token_mean" else len(response_lengths)
    if count == 0:
        missing = "response token" if response_lengths else "sequence"
        raise ValueError(f"the optimizer batch has no {missing} to learn from: leave it out")
    return count


def aggregate(
    per_token: Tensor, mask: Tensor, mode: LengthNormalization, denominator: float, constant: float | None = None
) -> Tensor:
    """This micro-batch's share of the optimizer batch's loss, a scalar; the shares of all micro-batches add up.

    masked_mean:       sum_b mean_t(loss)           / denominator (sequences)   -- GRPO, each sequence weighs the same
    masked_normalize:  sum_b sum_t(loss) / constant / denominator (sequences)   -- Dr. GRPO, arXiv:2503.20783
    token_mean:        sum_b sum_t(loss)            / denominator (tokens)      -- DAPO, arXiv:2503.14476, eq. 8

    `denominator` is `batch_denominator` of the whole optimizer batch, not of this part of it.
    A sequence without response tokens adds 0. Raises ValueError for a missing constant or an unknown mode.
    """
    if denominator <= 0:
        raise ValueError(f"denominator {denominator} must be positive: take batch_denominator of the optimizer batch")
    if mode == "masked_mean":
        return masked_mean(per_token, mask, dim=-1, empty=0.0).sum() / denominator
    if mode == "token_mean":
        return masked_sum(per_token, mask) / denominator
    if mode != "masked_normalize":
        raise ValueError(f"unknown length normalization {mode!r}: take masked_mean, masked_normalize or token_mean")
    if constant is None:
        raise ValueError("masked_normalize needs a constant, e.g. the maximal response length")
    return masked_normalize(per_token, mask, normalize_constant=constant) / denominator


def token_sums(statistics: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Sum of each (B, T) statistic over the mask, a scalar each; divide by the optimizer batch's response tokens."""
    return {name: masked_sum(values.detach(), mask) for name, values in statistics.items()}


def dpo_loss(
    chosen_log_probs: Tensor,
    rejected_log_probs: Tensor,
    ref_chosen_log_probs: Tensor,
    ref_rejected_log_probs: Tensor,
    beta: float,
) -> DPOLoss:
    """-log sigmoid(beta [(pi_w - ref_w) - (pi_l - ref_l)]) per pair (arXiv:2305.18290, eq. 7).

    Each argument is (B,): SUMS (not means) of a response's token log-probs; none through the reference.
    """
    chosen = beta * (chosen_log_probs - ref_chosen_log_probs.detach())
    rejected = beta * (rejected_log_probs - ref_rejected_log_probs.detach())
    return DPOLoss(-F.logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())


def _log_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return (log_probs - old_log_probs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _ratio_statistics(log_probs: Tensor, old_log_probs: Tensor) -> dict[str, Tensor]:
    """Ratio, and the k3 estimate of KL(old || new), r - 1 - log r, never negative."""
    log_ratio = _log_ratio(log_probs.detach(), old_log_probs)
    return {"ratio_mean": log_ratio.exp(), "approx_kl": log_ratio.expm1() - log_ratio}
