"""AdamW on float32 master weights, its learning rate as a pure function of the step, and one guarded update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from alignment_core.batching import TokenSequence
from alignment_core.hardware import memory_advice
from alignment_core.runs import RunContext
from alignment_core.training_config import OptimizerConfig

BROKEN_BATCH = "broken_batch"

ADVICE = (
    "weights, gradients and moments take 16 bytes per parameter, and activations lie beside them: lower "
    "micro_batch_tokens, or take a smaller model"
)

FUSED_DEVICES = {"cpu", "cuda"}
"""Where torch has a fused AdamW: one kernel over all parameters."""


@dataclass(frozen=True)
class UpdateReport:
    """What one optimizer step did."""

    grad_norm: float
    """Global L2 norm before clipping, each tied weight counted once."""
    learning_rate: float


def learning_rate_at(config: OptimizerConfig, step: int, total: int) -> float:
    """Learning rate of update `step` (0-based) of `total`.

    Warm-up: rate * (step + 1) / warmup_steps. After it, with x = (step - warmup) / (total - warmup) in [0, 1):
    constant 1, linear 1 - x, cosine (1 + cos(pi x)) / 2, times the rate; 0 would be reached at step `total`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(total - config.warmup_steps, 1)
    factors = {"constant": 1.0, "linear": 1.0 - progress, "cosine": (1.0 + math.cos(math.pi * progress)) / 2}
    return config.learning_rate * max(factors[config.schedule], 0.0)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with float32 moments; weight decay on matrices only (not on norms and biases).

    Raises ValueError unless every trained weight is float32: bfloat16 weights absorb updates below |w| / 256.
    """
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    narrow = [name for name, weight in trained if weight.dtype != torch.float32]
    if narrow:
        raise ValueError(
            f"weight {narrow[0]} is not float32: load the model in float32 and set compute_dtype bfloat16 instead"
        )
    groups = [
        {"params": [weight for _, weight in trained if weight.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for _, weight in trained if weight.dim() < 2], "weight_decay": 0.0},
    ]
    fused = trained[0][1].device.type in FUSED_DEVICES
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas, fused=fused
    )


@dataclass(frozen=True)
class StepGuard:
    """Stops a run whose numbers are not finite, before any weight changes."""

    run: RunContext
    step: int
    """Of the loop, from 1."""
    sequences: Sequence[TokenSequence]
    """The optimizer batch."""

    def finite(self, what: str, value: float) -> float:
        """The value itself.

        Raises FloatingPointError if it is NaN or infinite, with the place of the optimizer batch, which is set aside as
        "broken_batch"; the last checkpoint stands.
        """
        if math.isfinite(value):
            return value
        rows = [{"prompt_ids": one.prompt_ids, "response_ids": one.response_ids} for one in self.sequences]
        place = self.run.set_aside(BROKEN_BATCH, self.step, rows)
        raise FloatingPointError(
            f"the {what} is {value} at step {self.step}: its batch is in {place}; "
            "lower the learning rate, compute in float32, or take a broken example out of the data"
        )


def apply_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    update: int,
    total: int,
    guard: StepGuard,
) -> UpdateReport:
    """Clip the accumulated gradient, take update `update` (0-based) of `total`, clear the gradient.

    Raises FloatingPointError, by the guard, if the gradient is not finite.
    """
    with memory_advice(ADVICE):
        norm = guard.finite("gradient norm", float(nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)))
        rate = learning_rate_at(config, update, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return UpdateReport(norm, rate)
