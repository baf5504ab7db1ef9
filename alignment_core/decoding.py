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
    scaled = logits.float() / (temperature if temperature > 0 else 1.0)
    log_probs = scaled.log_softmax(-1)
    probabilities = log_probs.exp()
    entropy = -(probabilities * log_probs).sum(-1)
    if len(banned):
        allowed = scaled.index_fill(1, torch.as_tensor(banned, device=scaled.device), -torch.inf)
        probabilities = allowed.softmax(-1)
    if temperature == 0:
        ids = probabilities.argmax(-1)
    else:
        weights = probabilities.double()
        ids = inverse_cdf(weights if top_p >= 1 else nucleus(weights, top_p), draws)
    return Draw(ids, log_probs.gather(1, ids[:, None]).squeeze(1), entropy)


def inverse_cdf(weights: Tensor, draws: Tensor) -> Tensor:
    """(A, V) float64 weights, not necessarily summing to 1, and (A,) draws in [0, 1) -> (A,) ids."""
    cumulative = weights.cumsum(-1)
    thresholds = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(1)


def nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Weights of the smallest set of likeliest ids whose share reaches `top_p`; 0 for the others."""
    ordered, ids = torch.sort(weights, dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0)
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
