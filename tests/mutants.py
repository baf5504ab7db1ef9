"""Ways to break the mathematics, each of which a test must notice; `python tests/run_mutants.py` tries them all.

A mutant is a replacement in one room; its text must occur there exactly once, which `test_mutants.py` checks.
"""

from dataclasses import dataclass

LOSSES = ("test_losses.py", "test_loss_variants.py")


@dataclass(frozen=True)
class Mutant:
    """One broken line."""

    room: str
    """Module of alignment_core."""
    what: str
    """What is wrong with it, in words."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Tests that must notice."""


def of_room(room: str, tests: tuple[str, ...], *rows: tuple[str, str, str]) -> list[Mutant]:
    """Mutants of one room, (what, old, new) each, that the same tests must notice."""
    return [Mutant(room, what, old, new, tests) for what, old, new in rows]


MUTANTS = [
    *of_room(
        "losses",
        LOSSES,
        (
            "REINFORCE climbs down",
            "return -_weights(advantages, log_probs) * log_probs",
            "return _weights(advantages, log_probs) * log_probs",
        ),
        ("likelihood without its sign", "return -log_probs", "return log_probs"),
        ("ratio upside down", "(log_probs - old_log_probs.detach())", "(old_log_probs.detach() - log_probs)"),
        ("ratio unbounded", ".clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)", ""),
        ("gradient through the old policy", "(log_probs - old_log_probs.detach())", "(log_probs - old_log_probs)"),
        ("gradient through the advantages", "return weights.detach()", "return weights"),
        (
            "a vector of advantages is let through",
            "or weights.shape != (len(log_probs), 1)",
            "or len(weights) != len(log_probs)",
        ),
        (
            "clip takes the maximum",
            "ratio = probability_ratio(log_probs, old_log_probs)\n    loss = -torch.minimum(",
            "ratio = probability_ratio(log_probs, old_log_probs)\n    loss = -torch.maximum(",
        ),
        (
            "clip alone, without the minimum",
            "old_log_probs)\n    loss = -torch.minimum(ratio * weights, ratio.clamp(low, high) * weights)",
            "old_log_probs)\n    loss = -ratio.clamp(low, high) * weights",
        ),
        ("clip bounds swapped", "return 1 - low, 1 + high", "return 1 - high, 1 + low"),
        ("clip symmetric", "return 1 - low, 1 + high", "return 1 - low, 1 + low"),
        ("clip of the log-ratio's range", "return 1 - low, 1 + high", "return -low, high"),
        ("low flag on the wrong side", "((ratio < low) & (weights < 0))", "((ratio < low) & (weights > 0))"),
        ("high flag whatever the sign", "((ratio > high) & (weights > 0))", "(ratio > high)"),
        ("no-clip with its sign lost", "loss = -probability_ratio(", "loss = probability_ratio("),
        (
            "no_baseline takes the clipped loss's way",
            'if loss_type in ("no_baseline", "reinforce_with_baseline"):',
            'if loss_type == "reinforce_with_baseline":',
        ),
        ("k1 in place of k3", "    return log_ratio.expm1() - log_ratio\n", "    return -log_ratio\n"),
        (
            "KL the other way round",
            "log_ratio = -_log_ratio(log_probs, ref_log_probs)",
            "log_ratio = _log_ratio(log_probs, ref_log_probs)",
        ),
        ("approximate KL by k2", '"approx_kl": log_ratio.expm1() - log_ratio', '"approx_kl": 0.5 * log_ratio**2'),
        ("importance weight uncapped", "sampler_log_probs).clamp(max=cap)", "sampler_log_probs)"),
        ("importance weight capped below too", ".clamp(max=cap)", ".clamp(min=1 / cap, max=cap)"),
        (
            "importance weight with a gradient",
            "probability_ratio(old_log_probs.detach(), sampler_log_probs)",
            "probability_ratio(old_log_probs, sampler_log_probs)",
        ),
        (
            "importance weight upside down",
            "probability_ratio(old_log_probs.detach(), sampler_log_probs)",
            "probability_ratio(sampler_log_probs, old_log_probs)",
        ),
        (
            "GSPO by the product of ratios",
            "masked_mean(_log_ratio(log_probs, old_log_probs), mask, dim=-1, empty=0.0)",
            "masked_sum(_log_ratio(log_probs, old_log_probs), mask, dim=-1)",
        ),
        (
            "GSPO over the padding",
            "masked_mean(_log_ratio(log_probs, old_log_probs), mask, dim=-1, empty=0.0)",
            "_log_ratio(log_probs, old_log_probs).mean(-1)",
        ),
        ("GSPO without gradient", "ratio = mean.exp()[:, None]", "ratio = mean.detach().exp()[:, None]"),
        (
            "GSPO takes the maximum",
            ".expand_as(log_probs)\n    loss = -torch.minimum(",
            ".expand_as(log_probs)\n    loss = -torch.maximum(",
        ),
        (
            "CISPO with a gradient through the weight",
            "ratio = probability_ratio(log_probs.detach(), old_log_probs)",
            "ratio = probability_ratio(log_probs, old_log_probs)",
        ),
        ("CISPO unclipped", "loss = -ratio.clamp(low, high) * _weights", "loss = -ratio * _weights"),
        (
            "tokens counted for sequences",
            'sum(response_lengths) if mode == "token_mean" else len(response_lengths)',
            "len(response_lengths)",
        ),
        (
            "empty responses not counted",
            "else len(response_lengths)",
            "else sum(length > 0 for length in response_lengths)",
        ),
        (
            "mean over the micro-batch's sequences",
            "dim=-1, empty=0.0).sum() / denominator",
            "dim=-1, empty=0.0).mean()",
        ),
        (
            "mean over the micro-batch's tokens",
            "return masked_sum(per_token, mask) / denominator",
            "return masked_mean(per_token, mask)",
        ),
        ("constant, but not the batch", "normalize_constant=constant) / denominator", "normalize_constant=constant)"),
        (
            "0/0 for an empty response",
            "return masked_mean(per_token, mask, dim=-1, empty=0.0).sum()",
            "return masked_mean(per_token, mask, dim=-1).sum()",
        ),
        ("DPO prefers the rejected", "margin = beta * (chosen - rejected)", "margin = beta * (rejected - chosen)"),
        ("DPO without beta", "margin = beta * (chosen - rejected)", "margin = chosen - rejected"),
        (
            "DPO without the chosen's reference",
            "chosen = policy_chosen_logps - reference_chosen_logps.detach()",
            "chosen = policy_chosen_logps",
        ),
        (
            "DPO trains its reference",
            "policy_rejected_logps - reference_rejected_logps.detach()",
            "policy_rejected_logps - reference_rejected_logps",
        ),
        (
            "DPO smoothing on the wrong term",
            "return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing *",
            "return -label_smoothing * F.logsigmoid(margin) - (1 - label_smoothing) *",
        ),
        (
            "DPO by log(sigmoid)",
            "return -(1 - label_smoothing) * F.logsigmoid(margin)",
            "return -(1 - label_smoothing) * torch.sigmoid(margin).log()",
        ),
        (
            "implicit reward without beta",
            "return beta * (policy_logps - reference_logps).detach()",
            "return (policy_logps - reference_logps).detach()",
        ),
    ),
    *of_room(
        "advantages",
        ("test_advantages.py",),
        (
            "mean over the whole batch",
            "centered = rewards - rewards.mean(dim=1, keepdim=True)",
            "centered = rewards - rewards.mean()",
        ),
        (
            "biased standard deviation",
            "rewards.std(dim=1, keepdim=True) + eps",
            "rewards.std(dim=1, keepdim=True, correction=0) + eps",
        ),
        ("standard deviation of the batch", "rewards.std(dim=1, keepdim=True) + eps", "rewards.std() + eps"),
        ("no eps", "(rewards.std(dim=1, keepdim=True) + eps)", "rewards.std(dim=1, keepdim=True)"),
        (
            "equal rewards by their mean",
            "return torch.where(uniform_groups(rewards), torch.zeros_like(centered), centered)",
            "return centered",
        ),
        ("leave-one-out factor upside down", "(size / max(size - 1, 1))", "(max(size - 1, 1) / size)"),
        ("reward for length", "return [-scale * min(", "return [scale * min("),
        ("penalty without its buffer", "(length - (max_tokens - buffer), 0)", "(length - max_tokens, 0)"),
        (
            "equal groups first",
            "key=lambda group: (uniform[group], group)",
            "key=lambda group: (not uniform[group], group)",
        ),
        ("groups out of order", "return sorted(order[:count])", "return order[:count]"),
        (
            "share of groups that differ",
            "uniform_groups=uniform_groups(rewards)",
            "uniform_groups=(~uniform_groups(rewards))",
        ),
    ),
    *of_room(
        "masking",
        ("test_masking.py",),
        ("multiplied by the mask", "torch.where(mask.bool(), tensor, torch.zeros_like(tensor))", "tensor * mask"),
        (
            "mean over all positions",
            "positions = mask.bool().expand_as(tensor)",
            "positions = torch.ones_like(tensor, dtype=torch.bool)",
        ),
        ("0 for the mean of nothing", "masked_fill(count == 0, empty)", "masked_fill(count == 0, 0.0)"),
        (
            "constant not used",
            "return masked_sum(tensor, mask, dim) / normalize_constant",
            "return masked_sum(tensor, mask, dim)",
        ),
    ),
    *of_room(
        "dpo",
        ("test_dpo.py",),
        ("mean in place of sum", "log_probs.sum(-1).view(-1, 2)", "log_probs.mean(-1).view(-1, 2)"),
        ("the reference of other pairs", "self._references[chosen]", "self._references[: len(chosen)]"),
        ("pairs of the batch's numbers", "yield [rows[index // 2]", "yield [index // 2"),
        ("pairs parted", "self.sequences(rows), together=2)", "self.sequences(rows))"),
        (
            "denominator of the micro-batch",
            "self.engine.backward(losses.sum() / len(rows))",
            "self.engine.backward(losses.mean())",
        ),
        ("smoothing not passed on", ", self._beta, self._smoothing)", ", self._beta)"),
        (
            "chosen and rejected swapped",
            "(self._pairs[row].chosen, self._pairs[row].rejected)",
            "(self._pairs[row].rejected, self._pairs[row].chosen)",
        ),
        ("EOS after a stop string", "append_eos=not text.rstrip().endswith(tuple(stop))", "append_eos=True"),
        (
            "equal responses kept",
            "return bool(both) and pair.chosen.response_ids != pair.rejected.response_ids",
            "return bool(both)",
        ),
    ),
]
"""Losses, advantages, masks and preferences; `mutants_loops` has those of the rooms around them."""
