"""What a training step records: names and meaning of every metric, and how sums over micro-batches become them.

`ALWAYS` is emitted by every GRPO step, `SOMETIMES` only where the step has what it is about.
"""

import math
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignment_core.losses import MAX_LOG_RATIO, TokenLoss, token_sums
from alignment_core.masking import masked_sum
from alignment_core.processes import gather

ALWAYS: dict[str, str] = {
    "train/loss": "loss as optimized, mean over the step's updates",
    "train/grad_norm": "global L2 norm of the gradient before clipping, mean over updates",
    "train/learning_rate": "learning rate of the last update",
    "train/reward": "mean reward the grader gave, over all sampled responses",
    "train/reward_std": "unbiased standard deviation of the rewards that train",
    "train/format_reward": "share of responses in the asked format",
    "train/answer_reward": "share of responses with the right answer",
    "train/advantage_mean": "mean advantage; 0 by construction, up to rounding",
    "train/advantage_std": "unbiased standard deviation of the advantages",
    "train/advantage_min": "lowest advantage",
    "train/advantage_max": "highest advantage",
    "train/zero_variance_share": "share of sampled groups whose graded rewards are all equal: they teach no answer",
    "train/groups_sampled": "groups sampled; above P only under dynamic sampling",
    "train/overlong_penalty": "mean penalty taken off the rewards for length; 0 without an overlong buffer",
    "train/entropy": "mean entropy of the policy's next-token distribution, nats per response token",
    "train/ratio_mean": "mean of r = p / p_old over tokens and updates; 1 on-policy",
    "train/ratio_max": "largest r; 1 on-policy",
    "train/approx_kl": "mean k3 estimate of KL(p_old || p), nats per token; 0 on-policy",
    "train/clip_fraction_low": "share of tokens clipped at the lower bound; 0 on-policy",
    "train/clip_fraction_high": "share of tokens clipped at the upper bound; 0 on-policy",
    "train/mean_length": "mean response length, tokens",
    "train/truncation_rate": "share of responses cut at max_tokens",
    "train/suspicious": "responses that look like they play the grader, a count",
    "train/timeouts": "responses the grader gave up on, a count",
    "train/grading_errors": "responses the grader failed on, a count",
    "train/tokens": "response tokens trained on",
    "train/tokens_sampled": "response tokens sampled; more than were trained on only under dynamic sampling",
    "time/step": "seconds of the whole step, validation apart",
    "time/sync": "seconds to give the sampler the new weights",
    "time/generate": "seconds of sampling",
    "time/grade": "seconds of grading after the last response had ended",
    "time/grade_overlapped": "seconds of grading beside sampling",
    "time/score": "seconds of scoring under the old and the reference policy, before the first update",
    "time/update": "seconds of forward and backward passes and optimizer updates, scoring included",
    "time/tokens_per_second": "response tokens of the step / seconds of the step",
    "time/generate_tokens_per_second": "response tokens sampled / seconds of sampling",
    "time/update_tokens_per_second": "response tokens trained on, once per epoch / seconds of the updates",
    "memory/peak_gb": "highest memory of the process so far, 10^9 bytes: allocated on the GPU, or resident on a CPU",
}
"""Every step has these."""

SOMETIMES: dict[str, str] = {
    "train/mean_length_correct": "mean length of responses with a positive reward, if there is one",
    "train/mean_length_incorrect": "mean length of the others, if there is one",
    "train/sampler_gap": "mean |log p - log p_sampler| over tokens; where the sampler kept its log-probs",
    "train/sampler_gap_max": "largest |log p - log p_sampler|",
    "train/sampler_ratio_mean": "mean of p / p_sampler; 1 up to noise where both agree",
    "train/sampler_ratio_max": "largest p / p_sampler",
    "train/importance_capped": "share of tokens whose importance weight was cut at importance_cap",
    "train/kl_reference": "mean k3 estimate of KL(p || start policy), nats per token; with a kl_coefficient",
}
"""A step has these where they mean something."""


@dataclass
class StepStatistics:
    """Sums and maxima over response tokens, scalars on the device, collected micro-batch by micro-batch."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, values: Tensor, mask: Tensor, share: float = 1.0) -> None:
        """Add a (B, T) statistic, summed over the mask, times `share` (1 / epochs for what every epoch adds)."""
        self._sum(name, masked_sum(values.detach(), mask) * share)

    def add_maximum(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Keep the largest masked value of a (B, T) statistic."""
        highest = torch.where(mask, values.detach(), -math.inf).amax()
        self.maxima[name] = torch.maximum(self.maxima[name], highest) if name in self.maxima else highest

    def add_loss(self, loss: TokenLoss, mask: Tensor, share: float) -> None:
        """Add a loss's own statistics."""
        for name, total in token_sums(loss.statistics, mask).items():
            self._sum(name, total * share)
        if "ratio_mean" in loss.statistics:
            self.add_maximum("ratio_max", loss.statistics["ratio_mean"], mask)

    def add_policy(
        self, log_probs: Tensor, entropy: Tensor | None, sampler_log_probs: Tensor | None, mask: Tensor
    ) -> None:
        """Add the policy's entropy and how far it is from the sampler that drew the tokens."""
        if entropy is not None:
            self.add("entropy", entropy, mask)
        if sampler_log_probs is None:
            return
        gap = (log_probs.detach() - sampler_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        self.add("sampler_gap", gap.abs(), mask)
        self.add("sampler_ratio_mean", gap.exp(), mask)
        self.add_maximum("sampler_gap_max", gap.abs(), mask)
        self.add_maximum("sampler_ratio_max", gap.exp(), mask)

    def metrics(self, tokens: int) -> dict[str, float]:
        """train/… means over `tokens` response tokens, and maxima; on-policy values where no loss gave any.

        Every process that trains must call it: what all of them collected counts.
        """
        found = {"ratio_mean": 1.0, "ratio_max": 1.0, "approx_kl": 0.0}
        found |= {"clip_fraction_low": 0.0, "clip_fraction_high": 0.0}
        collected = gather((_floats(self.sums), _floats(self.maxima)))
        for name in {name for sums, _ in collected for name in sums}:
            found[name] = sum(sums.get(name, 0.0) for sums, _ in collected) / tokens
        for name in {name for _, maxima in collected for name in maxima}:
            highest = max(maxima.get(name, -math.inf) for _, maxima in collected)
            found |= {name: highest} if highest > -math.inf else {}
        return {f"train/{name}": value for name, value in found.items()}

    def _sum(self, name: str, total: Tensor) -> None:
        self.sums[name] = self.sums[name] + total if name in self.sums else total


def _floats(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in scalars.items()}


def peak_memory_gb(device: torch.device) -> float:
    """Highest memory so far, in 10^9 bytes: allocated on a CUDA device, else resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def throughput(metrics: Mapping[str, float], epochs: int) -> dict[str, float]:
    """Tokens per second of a step whose seconds and token counts are known."""
    tokens = {
        "time/step": metrics["train/tokens"],
        "time/generate": metrics["train/tokens_sampled"],
        "time/update": metrics["train/tokens"] * epochs,
    }
    rates = {phase: count / max(metrics[phase], 1e-9) for phase, count in tokens.items()}
    return {
        "time/tokens_per_second": rates["time/step"],
        "time/generate_tokens_per_second": rates["time/generate"],
        "time/update_tokens_per_second": rates["time/update"],
    }
