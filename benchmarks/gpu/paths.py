"""Two ways to one number: a plain reference of scores and loss, and the core's own path, over the same sequences."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment_core.batching import TokenSequence, collate, micro_batches
from alignment_core.logprobs import response_log_probs
from alignment_core.losses import aggregate, batch_denominator, policy_gradient_loss
from alignment_core.models import ComputeDtype, autocast
from alignment_core.training_config import LengthNormalization, LossType
from benchmarks.gpu import common

TEMPERATURE = 0.8
CONSTANT = 128.0


@dataclass(frozen=True)
class Scores:
    """Log-probs and entropies of all response tokens, sequence by sequence, in one vector each."""

    log_probs: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Case:
    """A model, sequences, per-sequence weights and an old policy: what the checks compute on."""

    model: PreTrainedModel
    sequences: list[TokenSequence]
    weights: Tensor
    """(B,)."""
    old_shift: Tensor
    """(tokens,) log p_old - log p, away from the clip's edge, so that rounding flips no token over it."""
    vocab_limit: int


def make_case(arguments: argparse.Namespace) -> Case:
    """Random weights with sharp distributions, and sequences of very different lengths."""
    vocab, hidden, layers, count = (512, 128, 2, 6) if arguments.toy else (8192, 512, 6, 16)
    model = common.random_model(common.small_shape(vocab, hidden, layers), torch.device("cpu"), arguments.seed, 3.0)
    lengths = common.gamma_lengths(count, 24 if arguments.toy else 90, 200, arguments.seed)
    prompts = [3 + 7 * (index % 5) for index in range(count)]
    sequences = common.random_sequences(prompts, lengths, vocab - 8, arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    weights = torch.randn(count, generator=generator)
    picks = torch.randint(0, 4, (sum(lengths),), generator=generator)
    shift = torch.tensor([-0.6, -0.08, 0.08, 0.6])[picks]
    return Case(model, sequences, weights, shift, vocab - 4)


def plain_scores(
    model: nn.Module, sequences: Sequence[TokenSequence], limit: int, compute_dtype: ComputeDtype = "float32"
) -> Scores:
    """One sequence at a time, full logits, log-softmax in the model's own type (float32 at least)."""
    device = next(model.parameters()).device
    log_probs, entropies = [], []
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids], device=device)
        with autocast(device, compute_dtype):
            logits = model(input_ids=ids, use_cache=False).logits
        logits = logits[0, len(sequence.prompt_ids) - 1 : -1, :limit]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / TEMPERATURE
        log_p = torch.log_softmax(wide, dim=-1)
        targets = ids[0, len(sequence.prompt_ids) :, None]
        log_probs.append(log_p.gather(-1, targets)[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return Scores(torch.cat(log_probs), torch.cat(entropies).detach())


def reference_loss(case: Case, log_probs: Tensor, kind: LossType, mode: LengthNormalization) -> Tensor:
    """The loss of the whole batch, written per token in plain sums, with old = reference log-probs + shift."""
    lengths = [len(sequence.response_ids) for sequence in case.sequences]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    advantage = case.weights.to(log_probs)[owner]
    ratio = torch.exp(-case.old_shift.to(log_probs) + log_probs - log_probs.detach())
    if kind in ("no_baseline", "reinforce_with_baseline"):
        per_token = -advantage * log_probs
    elif kind == "grpo_no_clip":
        per_token = -advantage * ratio
    else:
        per_token = -torch.minimum(advantage * ratio, advantage * ratio.clamp(0.8, 1.2))
    share = {
        "masked_mean": 1 / (len(lengths) * torch.tensor(lengths, dtype=log_probs.dtype)[owner]),
        "masked_normalize": torch.full_like(per_token, 1 / (len(lengths) * CONSTANT)),
        "token_mean": torch.full_like(per_token, 1 / sum(lengths)),
    }[mode]
    return (per_token * share).sum()


def core_scores(
    model: nn.Module, case: Case, compute_dtype: ComputeDtype, max_tokens: int, chunk_tokens: int = 2048
) -> Scores:
    """The path that trains: padded micro-batches, chunked head; back in the order of the sequences."""
    device = next(model.parameters()).device
    log_probs: dict[int, Tensor] = {}
    entropies: dict[int, Tensor] = {}
    for rows in micro_batches([sequence.length for sequence in case.sequences], max_tokens):
        batch = collate([case.sequences[row] for row in rows], 0, device)
        with autocast(device, compute_dtype):
            scores = response_log_probs(
                model, batch, TEMPERATURE, True, vocab_limit=case.vocab_limit, chunk_tokens=chunk_tokens
            )
        for index, row in enumerate(rows):
            mask = batch.response_mask[index]
            log_probs[row] = scores.log_probs[index][mask]
            entropies[row] = scores.entropy[index][mask] if scores.entropy is not None else log_probs[row] * 0
    order = range(len(case.sequences))
    return Scores(torch.cat([log_probs[i] for i in order]), torch.cat([entropies[i] for i in order]))


def core_loss(
    model: nn.Module,
    case: Case,
    old: Tensor,
    kind: LossType,
    mode: LengthNormalization,
    compute_dtype: ComputeDtype,
    max_tokens: int,
) -> float:
    """Loss of the batch through the core, its gradient left in the weights; `old` (tokens,) on the CPU."""
    device = next(model.parameters()).device
    lengths = [len(sequence.response_ids) for sequence in case.sequences]
    pieces = old.split(lengths)
    denominator = batch_denominator(lengths, mode)
    total = 0.0
    for rows in micro_batches([sequence.length for sequence in case.sequences], max_tokens):
        batch = collate([case.sequences[row] for row in rows], 0, device)
        with autocast(device, compute_dtype):
            scores = response_log_probs(model, batch, TEMPERATURE, vocab_limit=case.vocab_limit)
        values = torch.cat([pieces[row] for row in rows]).to(device, scores.log_probs.dtype)
        spread = torch.zeros_like(scores.log_probs).masked_scatter(batch.response_mask, values)
        weights = case.weights[list(rows)].to(device)[:, None]
        token_loss = policy_gradient_loss(kind, scores.log_probs, weights, spread, 0.2)
        share = aggregate(token_loss.loss, batch.response_mask, mode, denominator, CONSTANT)
        share.backward()
        total += float(share.detach())
    return total
