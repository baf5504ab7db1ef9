"""Log-probabilities and entropies of response tokens, without ever holding a batch's vocabulary logits.

    log p(y_t) = log softmax(z_t)[y_t],    z_t = (W h_t + b) / temperature

The model's body runs over the whole batch; its head only over response positions, `chunk_tokens` at a time,
in the compute type, with float32 (or wider) from the logits on. The backward pass recomputes each chunk's logits.
Peak memory of the head is a few chunk_tokens x V buffers instead of several B x T x V.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignment_core.batching import Batch

CHUNK_TOKENS = 2048
"""Rows of logits in memory at a time: 1.2 GB in float32 at a vocabulary of 152 000."""

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
    chunk_tokens: int = CHUNK_TOKENS,
) -> TokenScores:
    """Log-probability (and entropy) of every response token under `model`, at `temperature`.

    `model` is a Hugging Face causal language model with a linear head, tied or not; `batch` lies on its device.
    Ids from `vocab_limit` on (the padding of the embedding table) get probability 0. Gradients reach body and head;
    under autocast the head's products run in the autocast type. The model's train/eval mode is the caller's.
    Raises ValueError for a temperature or chunk that is not positive, a response token beyond `vocab_limit`,
    or a model that rescales its logits.
    """
    if temperature <= 0 or chunk_tokens <= 0:
        raise ValueError(f"temperature {temperature} and chunk_tokens {chunk_tokens} must be positive")
    hidden = _hidden_states(model, batch.input_ids)[batch.response_mask]
    labels = batch.labels[batch.response_mask]
    weight, bias = _head(model)
    limit = len(weight) if vocab_limit is None else min(vocab_limit, len(weight))
    _check_limit(labels, limit)
    settings = _HeadSettings(temperature, limit, chunk_tokens, with_entropy, _compute_dtype(hidden))
    with torch.autocast(hidden.device.type, enabled=False):
        log_probs, entropy = _ChunkedHead.apply(hidden, weight, bias, labels, settings)
    return TokenScores(
        _spread(log_probs, batch.response_mask), _spread(entropy, batch.response_mask) if with_entropy else None
    )


def entropy_from_logits(logits: Tensor) -> Tensor:
    """H = -sum_v p_v log p_v with p = softmax(logits), in nats: (..., V) gives (...), in float32 at least.

    A logit of -inf (a masked id) counts as probability 0.
    """
    log_p = logits.to(_wide(logits.dtype)).log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)


@dataclass(frozen=True)
class _HeadSettings:
    temperature: float
    vocab_limit: int
    chunk_tokens: int
    with_entropy: bool
    compute_dtype: torch.dtype


class _ChunkedHead(torch.autograd.Function):
    """Hidden states (N, H), weight (V, H), bias (V,) or None, labels (N,) -> log-probs (N,), entropies (N,) or none."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, settings: _HeadSettings
    ) -> tuple[Tensor, Tensor]:
        scores = hidden.new_empty(len(labels), dtype=_wide(settings.compute_dtype))
        entropy = torch.empty_like(scores) if settings.with_entropy else scores.new_empty(0)
        narrow_weight = weight[: settings.vocab_limit].to(settings.compute_dtype)
        for rows, logits in _logit_chunks(hidden, narrow_weight, bias, settings):
            log_p = logits.log_softmax(-1)
            scores[rows] = log_p.gather(-1, labels[rows, None]).squeeze(-1)
            if settings.with_entropy:
                entropy[rows] = -torch.exp(log_p, out=logits).mul_(log_p).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.settings = settings
        ctx.mark_non_differentiable(entropy)
        return scores, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels = ctx.saved_tensors
        limit, dtype = ctx.settings.vocab_limit, ctx.settings.compute_dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        narrow_weight = weight[:limit].to(dtype)
        scale = grad_scores[:, None] / ctx.settings.temperature
        # Autocast stays off in both passes: the compute type was settled when the scores were computed.
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, logits in _logit_chunks(hidden, narrow_weight, bias, ctx.settings):
                grad_logits = _logit_gradient(logits, labels[rows, None], scale[rows])
                narrow = grad_logits.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = narrow @ narrow_weight
                if grad_weight is not None:
                    grad_weight[:limit] += narrow.T @ hidden[rows].to(dtype)
                if grad_bias is not None:
                    grad_bias[:limit] += grad_logits.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None


def _logit_gradient(logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """(onehot(y) - softmax(z)) * scale, the gradient of log p(y) with respect to the logits (rows, V)."""
    return logits.softmax(-1).mul_(-scale).scatter_add_(-1, labels, scale)


def _logit_chunks(
    hidden: Tensor, narrow_weight: Tensor, bias: Tensor | None, settings: _HeadSettings
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their tempered logits, fresh tensors in the wide type that the caller may overwrite."""
    dtype = settings.compute_dtype
    for start in range(0, len(hidden), settings.chunk_tokens):
        rows = slice(start, start + settings.chunk_tokens)
        logits = (hidden[rows].to(dtype) @ narrow_weight.T).to(_wide(dtype))
        if bias is not None:
            logits += bias[: settings.vocab_limit]
        yield rows, logits.div_(settings.temperature)


def _hidden_states(model: nn.Module, input_ids: Tensor) -> Tensor:
    """(B, T, H) last hidden states of the body. No attention mask, so that the causal fast kernels apply."""
    body = getattr(model, "base_model", None)
    if not isinstance(body, nn.Module) or body is model:
        raise ValueError(f"{type(model).__name__} has no body apart from its head: give a causal language model")
    hidden: Tensor = body(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden


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
