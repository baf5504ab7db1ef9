"""The loop over a fixed set of examples: shuffled epochs of optimizer batches, validated and checkpointed.

The step is the cursor: batch, learning rate and order are functions of (seed, step), so a run that goes on from a
checkpoint is the run it would have been. What a batch's loss is, an `Objective` knows.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from transformers import PreTrainedModel

from alignment_core.batching import TokenSequence
from alignment_core.checkpoints import LoopIdentity, checkpoint_if_due, resume
from alignment_core.engine import Engine
from alignment_core.models import device_of
from alignment_core.optimization import StepGuard, apply_update, make_optimizer
from alignment_core.random_draws import permutation
from alignment_core.runs import RunContext
from alignment_core.seeding import derive_seed
from alignment_core.step_metrics import peak_memory_gb
from alignment_core.training_config import DPOConfig, SFTConfig

Validate = Callable[[int, PreTrainedModel], dict[str, float]]
"""(steps done, model) -> metrics of one point of the validation curve."""


class Objective(Protocol):
    """A loss over examples."""

    @property
    def engine(self) -> Engine:
        """What computes it, on the model to train."""

    def accumulate(self, rows: Sequence[int]) -> dict[str, float]:
        """Leave the gradient of these examples' loss in the weights; metrics with train/loss and train/tokens."""

    def sequences(self, rows: Sequence[int]) -> list[TokenSequence]:
        """Their token ids, for the record of a batch that broke the run."""


def train_epochs(
    name: str,
    objective: Objective,
    examples: int,
    config: SFTConfig | DPOConfig,
    run: RunContext,
    seed: int,
    validate: Validate | None,
) -> int:
    """Train the objective's model in place, from the newest checkpoint of loop `name` on; return the number of steps.

    Emits every step the objective's metrics, train/{grad_norm, learning_rate}, time/{update, tokens_per_second} and
    memory/peak_gb; `validate`'s at step 0, every `validate_every` steps and at the end.
    Raises FloatingPointError if loss or gradient is not finite.
    """
    model, total = objective.engine.model, optimizer_steps(examples, config)
    identity = LoopIdentity(name, seed, total, examples)
    optimizer = make_optimizer(model, config.optimizer)
    done = resume(run, model, optimizer, identity)
    run.say(objective.engine.attention)
    model.train()
    if done == 0 and validate is not None:
        run.emit(0, validate(0, model), total)
    for step in range(done, total):
        started = time.perf_counter()
        rows = batch_indices(examples, config.batch_size, step, seed)
        guard = StepGuard(run, step + 1, objective.sequences(rows))
        metrics = objective.accumulate(rows)
        guard.finite("loss", metrics["train/loss"])
        report = apply_update(model, optimizer, config.optimizer, step, total, guard)
        seconds = time.perf_counter() - started
        metrics |= {
            "train/grad_norm": report.grad_norm,
            "train/learning_rate": report.learning_rate,
            "time/update": seconds,
            "time/tokens_per_second": metrics["train/tokens"] / max(seconds, 1e-9),
            "memory/peak_gb": peak_memory_gb(device_of(model)),
        }
        if validate is not None and validation_due(step + 1, total, config.validate_every):
            metrics |= validate(step + 1, model)
        run.emit(step + 1, metrics, total)
        checkpoint_if_due(run, model, optimizer, step + 1, identity)
    model.eval()
    return total


def optimizer_steps(examples: int, config: SFTConfig | DPOConfig) -> int:
    """Optimizer steps over `examples`: ceil(examples / batch_size) per epoch."""
    return -(-examples // config.batch_size) * config.epochs


def batch_indices(examples: int, batch_size: int, step: int, seed: int) -> tuple[int, ...]:
    """Examples of optimizer step `step` (0-based): a slice of its epoch's shuffle; an epoch's last may be short."""
    epoch, position = divmod(step, -(-examples // batch_size))
    order = permutation(examples, derive_seed(seed, "epoch", epoch))
    return order[position * batch_size : (position + 1) * batch_size]


def validation_due(step: int, total: int, every: int) -> bool:
    """Whether a point of the validation curve belongs after `step` steps; always after the last."""
    return step == total or step % every == 0
