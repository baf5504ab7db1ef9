"""Supervised fine-tuning: the token mean of -log p over the response tokens of each optimizer batch.

The same loop (`alignment_core.epochs`) pretrains, on documents without a prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence
from alignment_core.engine import Engine
from alignment_core.epochs import Validate, train_epochs
from alignment_core.logprobs import gradient_of
from alignment_core.losses import aggregate, batch_denominator, negative_log_likelihood
from alignment_core.models import ComputeDtype, disable_dropout
from alignment_core.processes import own_run, sum_over_processes
from alignment_core.runs import RunContext
from alignment_core.training_config import SFTConfig


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
    predicted from its second token on. Emits train/{loss, tokens} and what `train_epochs` does.
    Raises ValueError if no example fits, FloatingPointError if loss or gradient is not finite.
    """
    run = own_run(run)
    kept = _trainable(examples, config.max_length, run)
    disable_dropout(model)
    engine = Engine(model, tokenizer, config, compute_dtype)
    engine.check(kept)  # all of them, before the first step
    learner = _Learner(engine, kept)
    return train_epochs("sft", learner, len(kept), config, run, seed, validate)


class _Learner:
    """The objective of fine-tuning on `examples`."""

    def __init__(self, engine: Engine, examples: Sequence[TokenSequence]) -> None:
        self.engine, self._examples = engine, examples

    def sequences(self, rows: Sequence[int]) -> list[TokenSequence]:
        """The examples themselves."""
        return [self._examples[row] for row in rows]

    def accumulate(self, rows: Sequence[int]) -> dict[str, float]:
        """Loss of one optimizer batch, its gradient left in the weights; the same for every micro-batch size."""
        engine, batch = self.engine, self.sequences(rows)
        lengths = [len(example.response_ids) for example in batch]
        denominator = batch_denominator(lengths, "token_mean")
        loss = torch.zeros((), device=engine.device)
        for _, micro in engine.micro_batches(batch):

            def share_of(log_probs: Tensor, mask: Tensor = micro.response_mask) -> Tensor:
                return aggregate(negative_log_likelihood(log_probs), mask, "token_mean", denominator)

            expected = gradient_of(share_of, micro.response_mask)
            share = share_of(engine.scores(micro, expected_gradient=expected).log_probs)
            engine.backward(share)
            loss += share.detach()
        engine.sum_gradients()
        return {"train/loss": float(sum_over_processes(loss)), "train/tokens": float(sum(lengths))}


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
