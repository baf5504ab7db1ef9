"""Supervised fine-tuning: the token mean of -log p over the response tokens of each optimizer batch.

The step is the cursor: batch, learning rate and order are functions of (seed, step), so a run that goes on from
a checkpoint is the run it would have been. The same loop pretrains, on documents without a prompt.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence
from alignment_core.checkpoints import LoopIdentity, checkpoint_if_due, resume
from alignment_core.engine import Engine
from alignment_core.logprobs import gradient_of
from alignment_core.losses import aggregate, batch_denominator, negative_log_likelihood
from alignment_core.models import ComputeDtype, disable_dropout
from alignment_core.optimization import apply_update, checked_loss, make_optimizer
from alignment_core.processes import own_run, sum_over_processes
from alignment_core.random_draws import permutation
from alignment_core.runs import RunContext
from alignment_core.seeding import derive_seed
from alignment_core.training_config import SFTConfig

Validate = Callable[[int, PreTrainedModel], dict[str, float]]
"""(steps done, model) -> metrics of one point of the validation curve."""


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TokenSequence],
    config: SFTConfig,
    run: RunContext,
    seed: int,
    compute_dtype: ComputeDtype = "float32",
    validate: Validate | None = None,
) -> int:
    """Train `model` in place; return the number of optimizer steps.

    An example ends as its ids end: whoever encodes it appends EOS or not. A document without a prompt is
    predicted from its second token on. Emits train/{loss, grad_norm, learning_rate, tokens} and time/update every
    step, and `validate`'s metrics at step 0, every `validate_every` steps and at the end.
    Raises ValueError if no example fits, FloatingPointError if loss or gradient is not finite.
    """
    run = own_run(run)
    kept = _trainable(examples, config.max_length, run)
    total = sft_steps(len(kept), config)
    identity = LoopIdentity("sft", seed, total, len(kept))
    optimizer = make_optimizer(model, config.optimizer)
    done = resume(run, model, optimizer, identity)
    disable_dropout(model)
    engine = Engine(model, tokenizer, config, compute_dtype)
    run.say(engine.attention)
    model.train()
    if done == 0 and validate is not None:
        run.emit(0, validate(0, model), total)
    for step in range(done, total):
        started = time.perf_counter()
        batch = [kept[index] for index in batch_indices(len(kept), config.batch_size, step, seed)]
        loss = _accumulate(engine, batch)
        checked_loss(loss, step + 1, run, batch)
        report = apply_update(model, optimizer, config.optimizer, step, total)
        metrics = {
            "train/loss": loss,
            "train/grad_norm": report.grad_norm,
            "train/learning_rate": report.learning_rate,
            "train/tokens": float(sum(len(example.response_ids) for example in batch)),
            "time/update": time.perf_counter() - started,
        }
        if validate is not None and validation_due(step + 1, total, config.validate_every):
            metrics |= validate(step + 1, model)
        run.emit(step + 1, metrics, total)
        checkpoint_if_due(run, model, optimizer, step + 1, identity)
    model.eval()
    return total


def sft_steps(examples: int, config: SFTConfig) -> int:
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


def _accumulate(engine: Engine, batch: Sequence[TokenSequence]) -> float:
    """Loss of one optimizer batch, its gradient left in the weights; the same for every micro-batch size."""
    denominator = batch_denominator([len(example.response_ids) for example in batch], "token_mean")
    loss = torch.zeros((), device=engine.device)
    for _, micro in engine.micro_batches(batch):

        def share_of(log_probs: Tensor, mask: Tensor = micro.response_mask) -> Tensor:
            return aggregate(negative_log_likelihood(log_probs), mask, "token_mean", denominator)

        expected = gradient_of(share_of, micro.response_mask)
        share = share_of(engine.scores(micro, expected_gradient=expected).log_probs)
        engine.backward(share)
        loss += share.detach()
    engine.sum_gradients()
    return float(sum_over_processes(loss))


def _trainable(examples: Sequence[TokenSequence], max_length: int, run: RunContext) -> list[TokenSequence]:
    """Examples with something to predict that are not too long; the others are left out, and counted aloud."""
    ready = [_with_predecessor(example) for example in examples]
    kept = [example for example in ready if example.response_ids and example.length <= max_length]
    if len(kept) < len(ready):
        left_out = len(ready) - len(kept)
        run.say(f"left out {left_out} of {len(ready)} examples: empty, or longer than {max_length} tokens")
    if not kept:
        raise ValueError(f"none of {len(ready)} examples fits: give more, or raise sft.max_length {max_length}")
    return kept


def _with_predecessor(example: TokenSequence) -> TokenSequence:
    """A document's first token has no predecessor: it is context, and nothing predicts it."""
    if example.prompt_ids:
        return example
    return TokenSequence(example.response_ids[:1], example.response_ids[1:])
