"""Losses per token, and the one place where they become a number.

Shapes: B sequences, T tokens. Every policy-gradient loss is a (B, T) tensor; `aggregate` reduces it to a SUM over
this micro-batch divided by the optimizer batch's own count, so that the micro-batches' results add up to the
loss, and their gradients to the gradient, of the whole batch, however it is split.

Symbols: A advantage, p the policy that is trained, p_old the policy of the rollout as the trainer scores it,
p_ref a frozen reference, r = p / p_old. Log-probabilities are in nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment_core.masking import masked_mean, masked_normalize, masked_sum
from alignment_core.training_config import LengthNormalization, LossType

MAX_LOG_RATIO = 20.0
"""Bound of |log ratio| before exp: e^20 is still finite in every type, and no sane update comes near."""

ClipRange = float | tuple[float, float]
"""c for the range [1 - c, 1 + c], or (low, high) for [1 - low, 1 + high]."""


@dataclass
class TokenLoss:
    """A per-token loss with per-token statistics of the same shape."""

    loss: Tensor
    """(B, T)."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """(B, T) each, no gradient; `token_sums` reduces them."""


def negative_log_likelihood(log_probs: Tensor) -> Tensor:
    """-log p per token: (B, T) gives (B, T)."""
    return -log_probs


def reinforce_loss(advantages: Tensor, log_probs: Tensor) -> Tensor:
    """-A log p per token: advantages, or rewards, (B, 1) and log-probs (B, T) give (B, T).

    REINFORCE (Williams, Machine Learning 8, 1992). No gradient through the advantages. Raises ValueError for advantages
    of another shape.
    """
    return -_weights(advantages, log_probs) * log_probs


def probability_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """r = exp(log p - log p_old) per token, (B, T), log-ratio clamped; no gradient through `old_log_probs`.

    Raises ValueError if the shapes differ.
    """
    return _log_ratio(log_probs, old_log_probs).exp()


def grpo_clip_loss(advantages: Tensor, log_probs: Tensor, old_log_probs: Tensor, cliprange: ClipRange) -> TokenLoss:
    """-min(r A, clip(r, 1 - low, 1 + high) A) per token.

    PPO's clipped objective (arXiv:1707.06347, eq. 7) with GRPO's advantages; a higher upper bound is DAPO's
    clip-higher (arXiv:2503.14476, eq. 8). Advantages (B, 1), log-probs (B, T). Statistics: those of the ratio, and
    where the clip is what was taken: `clip_fraction_low` for r < 1 - low with A < 0, `clip_fraction_high` for
    r > 1 + high with A > 0. Raises ValueError for other shapes or a range that is none.
    """
    low, high = clip_bounds(cliprange)
    weights = _weights(advantages, log_probs)
    ratio = probability_ratio(log_probs, old_log_probs)
    loss = -torch.minimum(ratio * weights, ratio.clamp(low, high) * weights)
    return TokenLoss(loss, _ratio_statistics(log_probs, old_log_probs) | _clip_flags(ratio, weights, low, high))


def grpo_no_clip_loss(advantages: Tensor, log_probs: Tensor, old_log_probs: Tensor) -> TokenLoss:
    """-r A per token: the off-policy objective without the clip; shapes as in `grpo_clip_loss`."""
    loss = -probability_ratio(log_probs, old_log_probs) * _weights(advantages, log_probs)
    return TokenLoss(loss, _ratio_statistics(log_probs, old_log_probs))


def gspo_loss(
    advantages: Tensor, log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, cliprange: ClipRange
) -> TokenLoss:
    """-min(s A, clip(s, 1 - low, 1 + high) A) on every token, s = exp(mean_t(log p - log p_old)).

    GSPO (arXiv:2507.18071, eq. 5 and 7): one ratio per sequence, its gradient through the mean; averaged over a
    sequence's tokens this is the paper's loss of the sequence. `mask` (B, T) marks response tokens. The clip flags
    are per sequence, on each of its tokens; the other statistics are those of token ratios.
    """
    low, high = clip_bounds(cliprange)
    weights = _weights(advantages, log_probs)
    mean = masked_mean(_log_ratio(log_probs, old_log_probs), mask, dim=-1, empty=0.0)
    ratio = mean.exp()[:, None].expand_as(log_probs)
    loss = -torch.minimum(ratio * weights, ratio.clamp(low, high) * weights)
    return TokenLoss(loss, _ratio_statistics(log_probs, old_log_probs) | _clip_flags(ratio, weights, low, high))


def cispo_loss(advantages: Tensor, log_probs: Tensor, old_log_probs: Tensor, cliprange: ClipRange) -> TokenLoss:
    """-stop_gradient(clip(r, 1 - low, 1 + high)) A log p per token (CISPO, arXiv:2506.13585, eq. 4 and 5).

    The clip bounds the weight of a token, never its gradient's existence; so the flags `clip_fraction_low` and
    `clip_fraction_high` mark r outside the range whatever the sign of A.
    """
    low, high = clip_bounds(cliprange)
    ratio = probability_ratio(log_probs.detach(), old_log_probs)
    loss = -ratio.clamp(low, high) * _weights(advantages, log_probs) * log_probs
    statistics = _ratio_statistics(log_probs, old_log_probs)
    statistics["clip_fraction_low"] = (ratio < low).to(loss.dtype)
    statistics["clip_fraction_high"] = (ratio > high).to(loss.dtype)
    return TokenLoss(loss, statistics)


def policy_gradient_loss(
    loss_type: LossType,
    log_probs: Tensor,
    weights: Tensor,
    old_log_probs: Tensor | None = None,
    cliprange: ClipRange | None = None,
    mask: Tensor | None = None,
) -> TokenLoss:
    """The per-token loss that `loss_type` names.

    `weights` (B, 1) are raw rewards for `no_baseline` and advantages for the others. All but the first two types
    need `old_log_probs` (B, T); in a strictly on-policy step those are `log_probs.detach()`. grpo_clip, gspo and
    cispo need `cliprange`, gspo also `mask` (B, T). Raises ValueError for a missing argument or an unknown type.
    """
    if loss_type in ("no_baseline", "reinforce_with_baseline"):
        return TokenLoss(reinforce_loss(weights, log_probs))
    if loss_type not in ("grpo_clip", "grpo_no_clip", "gspo", "cispo"):
        raise ValueError(
            f"unknown loss_type {loss_type!r}: take no_baseline, reinforce_with_baseline, grpo_clip, grpo_no_clip, "
            "gspo or cispo"
        )
    if old_log_probs is None:
        raise ValueError(f"loss_type {loss_type!r} needs old_log_probs (on-policy: log_probs.detach())")
    if loss_type == "grpo_no_clip":
        return grpo_no_clip_loss(weights, log_probs, old_log_probs)
    if cliprange is None:
        raise ValueError(f"loss_type {loss_type!r} needs cliprange, e.g. 0.2")
    if loss_type == "grpo_clip":
        return grpo_clip_loss(weights, log_probs, old_log_probs, cliprange)
    if loss_type == "cispo":
        return cispo_loss(weights, log_probs, old_log_probs, cliprange)
    if mask is None:
        raise ValueError("loss_type 'gspo' needs the response mask, over which its ratio is averaged")
    return gspo_loss(weights, log_probs, old_log_probs, mask, cliprange)


def clip_bounds(cliprange: ClipRange) -> tuple[float, float]:
    """(1 - low, 1 + high). Raises ValueError unless both are positive."""
    low, high = cliprange if isinstance(cliprange, tuple) else (cliprange, cliprange)
    if not (low > 0 and high > 0):
        raise ValueError(f"cliprange {cliprange} must be positive, e.g. 0.2 or (0.2, 0.28)")
    return 1 - low, 1 + high


def kl_to_reference(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """k3 estimate of KL(p || p_ref) per token, p_ref / p - log(p_ref / p) - 1 on samples of p: (B, T), never negative.

    GRPO's penalty (arXiv:2402.03300, eq. 4). Gradient through `log_probs` alone: 1 - p_ref / p.
    """
    log_ratio = -_log_ratio(log_probs, ref_log_probs)
    return log_ratio.expm1() - log_ratio


def importance_weights(old_log_probs: Tensor, sampler_log_probs: Tensor, cap: float) -> Tensor:
    """min(p_old / p_sampler, C) per token, (B, T), no gradient: truncated importance sampling.

    It corrects for a sampler that computes the policy's probabilities otherwise than the trainer; multiply the
    per-token loss by it, after the clip. The sampler's must be those of the distribution it drew from.
    """
    return probability_ratio(old_log_probs.detach(), sampler_log_probs).clamp(max=cap)


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
    masked_normalize:  sum_b sum_t(loss) / constant / denominator (sequences)   -- a constant of the caller's
    constant:          the same with the longest response allowed as constant   -- Dr. GRPO, arXiv:2503.20783
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
    if mode not in ("masked_normalize", "constant"):
        raise ValueError(
            f"unknown length normalization {mode!r}: take masked_mean, masked_normalize, token_mean or constant"
        )
    if constant is None:
        raise ValueError(f"{mode} needs a constant, e.g. the maximal response length")
    return masked_normalize(per_token, mask, normalize_constant=constant) / denominator


def token_sums(statistics: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Sum of each (B, T) statistic over the mask, a scalar each; divide by the optimizer batch's response tokens."""
    return {name: masked_sum(values.detach(), mask) for name, values in statistics.items()}


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-(1 - e) log sigmoid(h) - e log sigmoid(-h) per pair, h = beta [(log p_w/ref_w) - (log p_l/ref_l)]: (B,).

    w is the chosen and l the rejected response, e the label smoothing: the DPO loss (arXiv:2305.18290, eq. 7), for
    e > 0 its conservative form that takes a share e of the labels to be swapped. Each argument is (B,): SUMS (not
    means) of a response's token log-probs. No gradient through the reference.
    Raises ValueError for a beta that is not positive, or a smoothing outside [0, 0.5).
    """
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"beta {beta} must be positive and label_smoothing {label_smoothing} in [0, 0.5)")
    chosen = policy_chosen_logps - reference_chosen_logps.detach()
    rejected = policy_rejected_logps - reference_rejected_logps.detach()
    margin = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def implicit_rewards(policy_logps: Tensor, reference_logps: Tensor, beta: float) -> Tensor:
    """beta (log p - log p_ref) of responses, (B,), no gradient: the reward under which p is optimal (DPO, eq. 5)."""
    return beta * (policy_logps - reference_logps).detach()


def _weights(weights: Tensor, log_probs: Tensor) -> Tensor:
    """(B, 1), detached; (B,) is refused, which against (B, T) would weigh positions instead of sequences."""
    if log_probs.dim() != 2 or weights.shape != (len(log_probs), 1):
        raise ValueError(
            f"advantages (or rewards) of shape {tuple(weights.shape)} do not go with log-probs of shape "
            f"{tuple(log_probs.shape)}: give (B, 1) and (B, T)"
        )
    return weights.detach()


def _log_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    if log_probs.shape != old_log_probs.shape:
        raise ValueError(
            f"log-probs of shapes {tuple(log_probs.shape)} and {tuple(old_log_probs.shape)} have no ratio: "
            "score the same tokens under both policies"
        )
    return (log_probs - old_log_probs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _ratio_statistics(log_probs: Tensor, old_log_probs: Tensor) -> dict[str, Tensor]:
    """Ratio, and the k3 estimate of KL(old || new), r - 1 - log r, never negative."""
    log_ratio = _log_ratio(log_probs.detach(), old_log_probs)
    return {"ratio_mean": log_ratio.exp(), "approx_kl": log_ratio.expm1() - log_ratio}


def _clip_flags(ratio: Tensor, weights: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """1 where the minimum took the clipped side, apart for both bounds; (B, T) each."""
    ratio = ratio.detach()
    return {
        "clip_fraction_low": ((ratio < low) & (weights < 0)).to(ratio.dtype),
        "clip_fraction_high": ((ratio > high) & (weights > 0)).to(ratio.dtype),
    }
