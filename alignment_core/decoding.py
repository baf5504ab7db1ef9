"""One decoding step, and when a response ends: pure pieces under the samplers.

Shapes: A rows alive in the batch, V vocabulary (cut at the tokenizer's size).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment_core.config import SamplingConfig

REPLACEMENT = "\ufffd"
"""What a token decodes to when it holds only a part of a character."""

BLOCK = 512
"""Ids summed at once where a token is drawn: about the root of a vocabulary."""


class Draw(NamedTuple):
    """What one step gives each row."""

    ids: Tensor
    """(A,) int64."""
    log_probs: Tensor
    """(A,) float32 nats under the policy's own distribution at this temperature: before top-p and before the
    ban of EOS, so that they compare with the trainer's."""
    entropy: Tensor
    """(A,) float32 nats, of the same distribution."""


def draw_tokens(
    logits: Tensor, draws: Tensor, temperature: float, top_p: float = 1.0, banned: Sequence[int] | Tensor = ()
) -> Draw:
    """Sample one token per row by inverse CDF: the first id whose cumulative probability exceeds the draw.

    `logits` (A, V), `draws` (A,) float64 in [0, 1). Temperature 0 takes the likeliest token, with the log-probs
    of temperature 1. `banned` ids cannot be drawn; the rest is renormalised.
    """
    scaled = logits.float() if temperature in (0, 1) else logits.float() / temperature
    log_probs = scaled.log_softmax(-1)
    probabilities = log_probs.exp()
    entropy = -torch.linalg.vecdot(probabilities, log_probs)
    if len(banned):
        allowed = scaled.index_fill(1, torch.as_tensor(banned, device=scaled.device), -torch.inf)
        probabilities = allowed.softmax(-1)
    if temperature == 0:
        ids = probabilities.argmax(-1)
    else:
        ids = inverse_cdf(probabilities if top_p >= 1 else nucleus(probabilities, top_p), draws)
    return Draw(ids, log_probs.gather(1, ids[:, None]).squeeze(1), entropy)


def inverse_cdf(weights: Tensor, draws: Tensor) -> Tensor:
    """(A, V) weights, not necessarily summing to 1, and (A,) float64 draws in [0, 1) -> (A,) ids.

    A running sum in float32 over a large vocabulary would lose what is rarer than its rounding error, and could end
    below the draw. So a block of ids is drawn first, then one of its ids: float64 where sums run, over a few hundred
    numbers, and one pass over the weights. An id of weight 0 is never drawn, unless no weight of its row is positive.
    """
    size, device = weights.shape[-1], weights.device
    whole = size // BLOCK
    blocks = weights[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).sum(-1)
    rest = weights[:, whole * BLOCK :].sum(-1, keepdim=True)
    block, inside = _draw(torch.cat([blocks, rest], 1).double(), draws)
    ids = block[:, None] * BLOCK + torch.arange(BLOCK, device=device)
    own = weights.gather(1, ids.clamp(max=size - 1)).double().masked_fill(ids >= size, 0)
    offset, _ = _draw(own, inside)
    return (block * BLOCK + offset).clamp(max=size - 1)


def _draw(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """(A, n) float64 weights and (A,) draws -> (A,) first indices whose running sum exceeds draw * sum, and how far
    in [0, 1) into the weight at that index."""
    sums = weights.cumsum(-1)
    thresholds = draws * sums[:, -1]
    places, positive = torch.arange(weights.shape[-1], device=weights.device), weights > 0
    # A parallel scan need not be monotone to the last bit, so a weight of 0 is left out by itself.
    first = torch.where(positive & (sums > thresholds[:, None]), places, weights.shape[-1]).amin(-1)
    last = torch.where(positive, places, 0).amax(-1)
    index = torch.minimum(first, last)[:, None]
    own = weights.gather(1, index)[:, 0]
    inside = (thresholds - sums.gather(1, index)[:, 0] + own) / own
    return index[:, 0], inside.clamp(0, 1 - 2**-52)


def nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Weights of the smallest set of likeliest ids whose share reaches `top_p`; 0 for the others."""
    ordered, ids = torch.sort(weights, dim=-1, descending=True, stable=True)
    sums = ordered.cumsum(-1, dtype=torch.float64)
    kept = ordered.masked_fill(sums - ordered >= top_p * sums[:, -1:], 0)
    return torch.zeros_like(weights).scatter(1, ids, kept)


@dataclass
class StopRules:
    """When a response ends, for one tokenizer and one setting."""

    tokenizer: PreTrainedTokenizerBase
    config: SamplingConfig
    eos: frozenset[int]
    vocab_size: int

    def banned(self, position: int) -> list[int]:
        """Ids that may not be drawn at a 0-based position: EOS before `min_tokens` tokens are there."""
        return sorted(id_ for id_ in self.eos if id_ < self.vocab_size) if position < self.config.min_tokens else []

    def is_eos(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(A,) bool: the id ends the text."""
        return np.isin(ids, list(self.eos))

    def stop_candidates(self, ids: NDArray[np.int64], position: int) -> list[int]:
        """Rows whose newest token could complete a stop string, and may: so few that checking them is cheap."""
        if not self.config.stop or position < self.config.min_tokens:
            return []
        rows: list[int] = np.flatnonzero(self._may_complete[ids]).tolist()
        return rows

    def completes_stop(self, response: Sequence[int]) -> bool:
        """Whether the last token completes a stop string: the tail's text has one more than without that token."""
        tail = list(response[-self.tail_tokens :])
        after, before = self.text(tail), self.text(tail[:-1])
        return any(after.count(stop) > before.count(stop) for stop in self.config.stop)

    def text(self, ids: Sequence[int]) -> str:
        """Decoded response: special tokens shown as they are, a final EOS left out."""
        shown = ids[:-1] if len(ids) and ids[-1] in self.eos else ids
        return str(self.tokenizer.decode(list(shown), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @cached_property
    def _may_complete(self) -> NDArray[np.bool_]:
        """(V,) bool: the token's own text holds the last character of a stop string, or may hold a part of it."""
        last = {stop[-1] for stop in self.config.stop if stop}
        if any(not character.isascii() for character in last):
            last.add(REPLACEMENT)
        pieces = self.tokenizer.batch_decode(
            [[id_] for id_ in range(self.vocab_size)], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return np.array([any(character in last for character in piece) for piece in pieces], dtype=bool)

    @property
    def tail_tokens(self) -> int:
        """Tokens enough to hold any stop string: up to four (the bytes of a character) per character."""
        return 4 * max(len(stop) for stop in self.config.stop) + 4
