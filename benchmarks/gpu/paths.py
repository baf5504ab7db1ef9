"""Two ways to one number: plain scores, one sequence at a time, and the training loops' own path over the same ones."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.attention import Kernel
from alignment_core.batching import TokenSequence, collate
from alignment_core.engine import Engine
from alignment_core.logprobs import gradient_of, response_log_probs
from alignment_core.models import ComputeDtype, autocast, vocab_limit
from alignment_core.training_config import Attention, EngineConfig
from benchmarks.gpu import common
from benchmarks.gpu.kernels import forced

TEMPERATURE = 0.8
TOKEN_SHIFTS = (-0.6, -0.08, 0.08, 0.6)
SEQUENCE_SHIFTS = (-0.1, -0.02, 0.02, 0.1)
"""log p - log p_old of tokens, and the mean of it over a sequence: within the clip and beyond, far from its edges."""

Share = Callable[[Sequence[int], Tensor, Tensor], Tensor]
"""(sequences of a micro-batch, their log-probs (B, T), response mask) -> its share of the loss."""


@dataclass(frozen=True)
class Scores:
    """Log-probs and entropies of all response tokens, sequence by sequence, in one vector each."""

    log_probs: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Case:
    """A model, sequences, per-sequence weights and an old policy: what the checks compute on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sequences: list[TokenSequence]
    """Pairs with one prompt each; the last pair has the first one's."""
    weights: Tensor
    """(B,)."""
    token_shift: Tensor
    """(tokens,) log p - log p_old, for ratios of tokens."""
    sequence_shift: Tensor
    """(tokens,) the same for ratios of sequences."""

    @property
    def lengths(self) -> list[int]:
        """Response tokens of each sequence."""
        return [len(sequence.response_ids) for sequence in self.sequences]

    @property
    def third(self) -> int:
        """Tokens of a small micro-batch: several of them are needed, and sequences of one prompt are parted."""
        return sum(self.lengths) // 3


@dataclass(frozen=True)
class Way:
    """How the core computes; by default packed rows in float32, all of them in one, by the kernel the core picks."""

    dtype: ComputeDtype = "float32"
    kernel: Kernel | None = None
    attention: Attention = "auto"
    max_tokens: int = 1_000_000
    recompute: bool = False
    compile: bool = False

    def engine(self, model: PreTrainedModel, case: Case) -> Engine:
        """The loops' engine, the model made ready for it."""
        settings = EngineConfig(
            micro_batch_tokens=self.max_tokens,
            attention=self.attention,
            recompute_activations=self.recompute,
            compile=self.compile,
        )
        return Engine(model, case.tokenizer, settings, self.dtype, TEMPERATURE)


def make_case(arguments: argparse.Namespace) -> Case:
    """Random weights with sharp distributions, and sequences of very different lengths."""
    vocab, hidden, layers, count = (512, 128, 2, 6) if arguments.toy else (8192, 512, 6, 16)
    model = common.random_model(common.small_shape(vocab, hidden, layers), torch.device("cpu"), arguments.seed, 3.0)
    lengths = common.gamma_lengths(count, 24 if arguments.toy else 90, 200, arguments.seed)
    prompts = [3 + 7 * (index % 5) for index in range(count)]
    drawn = common.random_sequences(prompts, lengths, vocab - 8, arguments.seed)
    owners = [index // 2 for index in range(count - 2)] + [0, 0]
    sequences = [
        TokenSequence(drawn[owner].prompt_ids, one.response_ids) for owner, one in zip(owners, drawn, strict=True)
    ]
    generator = torch.Generator().manual_seed(arguments.seed)
    weights = torch.randn(count, generator=generator)
    picks = torch.randint(0, 4, (sum(lengths),), generator=generator)
    shift = torch.tensor(TOKEN_SHIFTS)[picks]
    even = [
        part - part.mean() + SEQUENCE_SHIFTS[index * 3 % 4] for index, part in enumerate(shift.double().split(lengths))
    ]
    # The last ids have no word: they are padding of the table, and must not be scored.
    return Case(model, common.word_tokenizer(vocab - 4), sequences, weights, shift, torch.cat(even))


def plain_scores(model: PreTrainedModel, case: Case, compute_dtype: ComputeDtype = "float32") -> Scores:
    """One sequence at a time, full logits, log-softmax in the model's own type (float32 at least)."""
    model.set_attn_implementation("sdpa")
    device = next(model.parameters()).device
    log_probs, entropies = [], []
    for sequence in case.sequences:
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids], device=device)
        with autocast(device, compute_dtype):
            logits = model(input_ids=ids, use_cache=False).logits
        logits = logits[0, len(sequence.prompt_ids) - 1 : -1, : vocab_limit(case.tokenizer)]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / TEMPERATURE
        log_p = torch.log_softmax(wide, dim=-1)
        targets = ids[0, len(sequence.prompt_ids) :, None]
        log_probs.append(log_p.gather(-1, targets)[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return Scores(torch.cat(log_probs), torch.cat(entropies).detach())


@torch.no_grad()
def core_scores(model: PreTrainedModel, case: Case, way: Way, scored: PreTrainedModel | None = None) -> Scores:
    """By the loops' path, back in the order of the sequences; `scored` is a copy of the model to score instead."""
    engine = way.engine(model, case)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    with forced(way.kernel):
        for rows, batch in engine.micro_batches(case.sequences):
            scores = engine.scores(batch, with_entropy=True, model=scored)
            entropy = scores.entropy if scores.entropy is not None else torch.zeros_like(scores.log_probs)
            for index, row in enumerate(rows):
                mask = batch.response_mask[index]
                found[row] = scores.log_probs[index][mask], entropy[index][mask]
    order = range(len(case.sequences))
    return Scores(torch.cat([found[row][0] for row in order]), torch.cat([found[row][1] for row in order]))


@torch.no_grad()
def chunked_scores(model: PreTrainedModel, case: Case, chunk_tokens: int) -> Scores:
    """All sequences in one float32 row, the head over `chunk_tokens` of its tokens at a time."""
    way = Way()
    engine = way.engine(model, case)
    batch = collate(case.sequences, 0, engine.device)
    limit = vocab_limit(case.tokenizer)
    scores = response_log_probs(model, batch, TEMPERATURE, True, vocab_limit=limit, chunk_tokens=chunk_tokens)
    entropy = scores.entropy if scores.entropy is not None else torch.zeros_like(scores.log_probs)
    return Scores(scores.log_probs[batch.response_mask], entropy[batch.response_mask])


def core_loss(
    model: PreTrainedModel, case: Case, way: Way, share: Share, known: bool = False, together: int = 1
) -> float:
    """Loss of the batch as the loops compute it, its gradient left in the weights.

    known: tell the head the gradient beforehand, as the loops do where the loss allows it; together: sequences in a
    row that share a micro-batch.
    """
    engine = way.engine(model, case)
    model.train()
    total = 0.0
    with forced(way.kernel):
        for rows, batch in engine.micro_batches(case.sequences, together):
            mask = batch.response_mask

            def share_of(log_probs: Tensor, rows: Sequence[int] = rows, mask: Tensor = mask) -> Tensor:
                return share(rows, log_probs, mask)

            expected = gradient_of(share_of, mask) if known else None
            value = share_of(engine.scores(batch, expected_gradient=expected).log_probs)
            engine.backward(value)
            total += float(value.detach())
    engine.sum_gradients()
    model.eval()
    return total


def core_gradient(
    model: PreTrainedModel, case: Case, way: Way, share: Share, known: bool = False, together: int = 1
) -> tuple[float, Tensor]:
    """Loss and gradient, the latter in one vector; the model's own are cleared."""
    model.zero_grad(set_to_none=True)
    loss = core_loss(model, case, way, share, known, together)
    gradient = common.gradient_vector(model)
    model.zero_grad(set_to_none=True)
    return loss, gradient


def spread(values: Sequence[Tensor], rows: Sequence[int], mask: Tensor, like: Tensor) -> Tensor:
    """The rows' vectors over response tokens, in a tensor like `like`, 0 outside the mask."""
    flat = torch.cat([values[row] for row in rows]).to(like.device, like.dtype)
    return torch.zeros_like(like).masked_scatter(mask, flat)


def gradient_of_plain(model: nn.Module, loss: Tensor) -> tuple[float, Tensor]:
    """Value and gradient of a loss whose graph is at hand; the graph is kept for the next one."""
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return float(loss.detach()), common.gradient_vector(model)
