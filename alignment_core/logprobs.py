"""Log-probabilities and entropies of response tokens, without ever holding a batch's vocabulary logits.

    log p(y_t) = log softmax(z_t)[y_t],    z_t = (W h_t + b) / temperature

The model's body runs over the whole batch; its head only over response positions, a chunk of rows at a time, in the
compute type, with float32 (or wider) from the logits on. Memory of the head is a chunk of logits and an eighth of one,
however many tokens and however large the vocabulary. The backward pass recomputes each chunk's logits; where the caller
knows the gradient that its loss will send back, the head's gradient is made in the forward pass, from the logits at
hand, which saves a quarter of the head's work.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignment_core.attention import is_packed
from alignment_core.batching import Batch

CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**30}
"""Logits in memory at a time, by device: on a CPU what its cache can nearly hold."""

BLOCKS = 8
"""Parts of a chunk whose probabilities are made one after another, in one buffer of a part's size."""

RESCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings of models whose logits are more than a linear head; the chunked head would miss them."""


@dataclass
class TokenScores:
    """Per-token scores of a batch; 0 outside the response mask."""

    log_probs: Tensor
    """(B, T), nats; float32 or wider."""
    entropy: Tensor | None
    """(B, T), nats, no gradient; None unless asked for."""


def response_log_probs(
    model: nn.Module,
    batch: Batch,
    temperature: float = 1.0,
    with_entropy: bool = False,
    vocab_limit: int | None = None,
    chunk_tokens: int | None = None,
    expected_gradient: Tensor | None = None,
) -> TokenScores:
    """Log-probability (and entropy) of every response token under `model`, at `temperature`.

    `model` is a Hugging Face causal language model with a linear head, tied or not; `batch` lies on its device. A
    model prepared by `alignment_core.attention` runs the batch's packed row, any other its padded rows.
    Ids from `vocab_limit` on (the padding of the embedding table) get probability 0. Gradients reach body and head;
    under autocast the head's products run in the autocast type. The model's train/eval mode is the caller's.
    chunk_tokens: rows of logits in memory at a time; None follows the device. expected_gradient: (B, T), what the loss
    will send back for `log_probs`, if known beforehand (`gradient_of`); one that turns out wrong costs time only.
    Raises ValueError for a temperature or chunk that is not positive, a response token beyond `vocab_limit`,
    or a model that rescales its logits.
    """
    if temperature <= 0 or (chunk_tokens is not None and chunk_tokens <= 0):
        raise ValueError(f"temperature {temperature} and chunk_tokens {chunk_tokens} must be positive")
    hidden = _predictors(model, batch)
    labels = batch.labels[batch.response_mask]
    weight, bias = _head(model)
    limit = len(weight) if vocab_limit is None else min(vocab_limit, len(weight))
    _check_limit(labels, limit)
    dtype = _compute_dtype(hidden)
    rows = chunk_tokens or chunk_rows(hidden.device, limit, _wide(dtype))
    settings = _HeadSettings(temperature, limit, rows, with_entropy, dtype)
    expected = None
    if expected_gradient is not None and torch.is_grad_enabled():
        expected = expected_gradient[batch.response_mask].to(_wide(dtype))
    with torch.autocast(hidden.device.type, enabled=False):
        log_probs, entropy = _ChunkedHead.apply(hidden, weight, bias, labels, settings, expected)
    return TokenScores(
        _spread(log_probs, batch.response_mask), _spread(entropy, batch.response_mask) if with_entropy else None
    )


def entropy_from_logits(logits: Tensor) -> Tensor:
    """H = -sum_v p_v log p_v with p = softmax(logits), in nats: (..., V) gives (...), in float32 at least.

    A logit of -inf (a masked id) counts as probability 0.
    """
    log_p = logits.to(_wide(logits.dtype)).log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)


def gradient_of(loss: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """Gradient of a loss of log-probs (B, T) that is the same for all log-probs: a linear loss, or an on-policy one
    whose old log-probs are its argument, detached. For `expected_gradient`."""
    with torch.enable_grad():
        log_probs = torch.zeros(mask.shape, device=mask.device, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(log_probs), log_probs)
    return gradient


def chunk_rows(device: torch.device, vocabulary: int, dtype: torch.dtype) -> int:
    """Rows of logits over `vocabulary` ids that fit the device's share."""
    return max(CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (vocabulary * dtype.itemsize), 1)


@dataclass(frozen=True)
class _HeadSettings:
    temperature: float
    vocab_limit: int
    chunk_tokens: int
    with_entropy: bool
    compute_dtype: torch.dtype


class _ChunkedHead(torch.autograd.Function):
    """Hidden states (R, H), weight (V, H), bias (V,) or None, labels (R,) -> log-probs (R,), entropies (R,) or none."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        settings: _HeadSettings,
        expected: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        scores = hidden.new_empty(len(labels), dtype=_wide(settings.compute_dtype))
        entropy = torch.empty_like(scores) if settings.with_entropy else scores.new_empty(0)
        chunks = _Chunks(hidden, weight, bias, settings)
        gradient = None if expected is None else _HeadGradient(chunks, ctx.needs_input_grad[:3])
        for rows, logits, spare in chunks:
            for part, z in _blocks(rows, logits, spare):
                log_p = torch.log_softmax(z, -1, out=spare[: len(z)])
                scores[part] = log_p.gather(-1, labels[part, None]).squeeze(-1)
                if settings.with_entropy or gradient is not None:
                    p = torch.exp(log_p, out=z)
                if settings.with_entropy:
                    entropy[part] = -torch.linalg.vecdot(p, log_p)
            if gradient is not None and expected is not None:
                gradient.add(rows, logits, labels[rows], expected[rows])
        ctx.save_for_backward(hidden, weight, bias, labels, expected)
        ctx.settings = settings
        ctx.gradient = gradient
        ctx.mark_non_differentiable(entropy)
        return scores, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, expected = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None or not torch.equal(grad_scores, expected):
            # Autocast stays off in both passes: the compute type was settled when the scores were computed.
            with torch.autocast(hidden.device.type, enabled=False):
                chunks = _Chunks(hidden, weight, bias, ctx.settings)
                gradient = _HeadGradient(chunks, ctx.needs_input_grad[:3])
                for rows, logits, spare in chunks:
                    for _part, z in _blocks(rows, logits, spare):
                        z.copy_(torch.softmax(z, -1, out=spare[: len(z)]))
                    gradient.add(rows, logits, labels[rows], grad_scores[rows])
        return gradient.hidden, gradient.weight, gradient.bias, None, None, None


class _Chunks:
    """The logits of a batch, one chunk of rows at a time, always in the same two buffers."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _HeadSettings) -> None:
        self.hidden, self.full_weight, self.bias, self.settings = hidden, weight, bias, settings
        self.weight = weight[: settings.vocab_limit].to(settings.compute_dtype)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, their tempered logits in the wide type, and a buffer for some of them; both to be overwritten."""
        dtype, wide = self.settings.compute_dtype, _wide(self.settings.compute_dtype)
        size = min(self.settings.chunk_tokens, len(self.hidden))
        # One piece of memory: a C library keeps smaller ones for itself when they are given back.
        buffer = self.hidden.new_empty(size + -(-size // BLOCKS), len(self.weight), dtype=wide)
        spare = buffer[size:]
        for start in range(0, len(self.hidden), max(size, 1)):
            states = self.hidden[start : start + size]
            logits = buffer[: len(states)]
            if dtype == wide:
                torch.mm(states.to(dtype), self.weight.T, out=logits)
            else:
                logits.copy_(states.to(dtype) @ self.weight.T)
            if self.bias is not None:
                logits += self.bias[: len(self.weight)]
            if self.settings.temperature != 1:
                logits /= self.settings.temperature
            yield slice(start, start + size), logits, spare


def _blocks(rows: slice, logits: Tensor, spare: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """A chunk's rows and logits, as many at a time as `spare` has room for."""
    for start in range(0, len(logits), len(spare)):
        block = logits[start : start + len(spare)]
        yield slice(rows.start + start, rows.start + start + len(block)), block


class _HeadGradient:
    """Gradients of sum_t g_t log p(y_t), gathered chunk by chunk; None for what needs none."""

    def __init__(self, chunks: _Chunks, wanted: Sequence[bool]) -> None:
        self._chunks = chunks
        self.hidden = torch.empty_like(chunks.hidden) if wanted[0] else None
        self.weight = torch.zeros_like(chunks.full_weight) if wanted[1] else None
        self.bias = torch.zeros_like(chunks.bias) if chunks.bias is not None and wanted[2] else None

    def add(self, rows: slice, p: Tensor, labels: Tensor, gradient: Tensor) -> None:
        """Add a chunk: its probabilities (rows, V), which are overwritten, its labels, and g (rows,).

        d log p(y) / dz = onehot(y) - p. The row's factor -g / temperature goes to the narrow side of each product.
        """
        settings, weight = self._chunks.settings, self._chunks.weight
        p.scatter_add_(-1, labels[:, None], p.new_full((len(labels), 1), -1))
        narrow = p.to(settings.compute_dtype)
        factor = gradient[:, None] / -settings.temperature
        if self.hidden is not None:
            self.hidden[rows] = (narrow @ weight) * factor
        if self.weight is not None:
            states = (self._chunks.hidden[rows] * factor).to(settings.compute_dtype)
            target = self.weight[: len(weight)]
            if target.dtype == narrow.dtype:
                target.addmm_(narrow.T, states)
            else:
                target += narrow.T @ states
        if self.bias is not None:
            self.bias[: len(weight)] += (factor.T @ p)[0]


def _predictors(model: nn.Module, batch: Batch) -> Tensor:
    """(R, H) last hidden states of the body at the positions that predict response tokens, row by row."""
    body = getattr(model, "base_model", None)
    if not isinstance(body, nn.Module) or body is model:
        raise ValueError(f"{type(model).__name__} has no body apart from its head: give a causal language model")
    hidden: Tensor
    if batch.packed is not None and is_packed(model):
        row = batch.packed
        hidden = body(
            input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, layout=row.layout
        ).last_hidden_state
        return hidden[0].index_select(0, row.predictors)
    # No attention mask, so that the causal fast kernels apply: causal attention never looks right, where padding is.
    hidden = body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return hidden[batch.response_mask]


def _head(model: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (V, H) and bias of the language-model head."""
    rescaled = [name for name in RESCALED_LOGITS if getattr(model.config, name, None) not in (None, 1, 1.0)]
    if rescaled:
        raise ValueError(f"{type(model).__name__} sets {rescaled[0]}: take a model with a plain linear head")
    head = model.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_limit(labels: Tensor, limit: int) -> None:
    highest = int(labels.max()) if len(labels) else -1
    if highest >= limit:
        raise ValueError(
            f"response token {highest} is not below the vocabulary limit {limit}, so its probability is 0: "
            "sample with the same limit, or score without vocab_limit"
        )


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values of the true positions, in order, back in a (B, T) tensor of zeros."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
