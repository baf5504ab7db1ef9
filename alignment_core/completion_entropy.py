"""Entropy of completions whose sampler kept none: one forward pass of the policy over what it said."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence, collate, micro_batches
from alignment_core.logprobs import response_log_probs
from alignment_core.models import ComputeDtype, autocast, device_of, pad_id, vocab_limit
from alignment_core.records import Completion

TOKENS = 16_384
"""Padded tokens in one forward pass."""


@torch.no_grad()
def with_entropy(
    completions: Sequence[Completion],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
    compute_dtype: ComputeDtype = "float32",
) -> list[Completion]:
    """The same completions, each with the mean entropy (nats) of `model`'s next-token distributions; those that have
    one stay as they are. Temperature 0 counts as 1, as in sampling.
    """
    found = list(completions)
    missing = [row for row, item in enumerate(found) if item.mean_entropy is None]
    sequences = [TokenSequence(found[row].prompt_ids, found[row].response_ids) for row in missing]
    lengths = [len(one.prompt_ids) + len(one.response_ids) for one in sequences]
    device, was_training = device_of(model), model.training
    model.eval()
    for part in micro_batches(lengths, TOKENS):
        batch = collate([sequences[index] for index in part], pad_id(model, tokenizer), device)
        with autocast(device, compute_dtype):
            scores = response_log_probs(model, batch, temperature or 1.0, True, vocab_limit(tokenizer))
        if scores.entropy is not None:
            means = scores.entropy.sum(-1) / batch.response_mask.sum(-1)
            for index, mean in zip(part, means.tolist(), strict=True):
                found[missing[index]] = found[missing[index]].model_copy(update={"mean_entropy": mean})
    model.train(was_training)
    return found
