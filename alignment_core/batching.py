"""Token ids into batches: right padding, shifted labels, masks from lengths, token budgets, packed rows.

A causal model never looks right of a position, so a right-padded batch needs no attention mask.
Masks come from the lengths of prompt and response, never from `ids != pad`: with EOS = PAD that would drop the EOS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class TokenSequence:
    """One prompt and its response, as token ids."""

    prompt_ids: list[int]
    response_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass
class Batch:
    """B right-padded sequences of T positions; `labels[b, t]` is the token that follows `input_ids[b, t]`."""

    input_ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T) int64."""
    response_mask: Tensor
    """(B, T) bool, true exactly where the label is a response token."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return type(self)(
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            response_mask=self.response_mask.to(device, non_blocking=True),
        )


def collate(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Right-pad B sequences to the longest, L tokens, and shift: the batch has T = L - 1 positions.

    Raises ValueError if no sequence has two tokens, or one has no prompt token to predict its response from.
    """
    longest = max((sequence.length for sequence in sequences), default=0)
    if longest < 2:
        raise ValueError("nothing to predict: give at least one sequence of two tokens or more")
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    is_response = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        start = len(sequence.prompt_ids)
        if start == 0:
            raise ValueError(
                f"sequence {row} has an empty prompt, so nothing predicts its first response token: "
                "put at least one token (e.g. BOS) before it"
            )
        ids[row, : sequence.length] = torch.tensor(sequence.prompt_ids + sequence.response_ids)
        is_response[row, start : sequence.length] = True
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), is_response[:, 1:].contiguous()).to(device)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split sequences into index lists whose padded size, rows x longest, is at most `max_tokens`.

    Longest first (ties by index), so that rows of a batch are of similar length and a batch too large for the
    memory fails at once. A sequence longer than the budget gets a batch of its own.
    Raises ValueError for a budget or a length that is not positive.
    """
    if max_tokens <= 0 or any(length <= 0 for length in lengths):
        raise ValueError(f"token budget {max_tokens} and all sequence lengths must be positive")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if room == 0:
            batches.append([])
            room = max(max_tokens // lengths[index], 1)
        batches[-1].append(index)
        room -= 1
    return batches


class PackedDataset(Dataset[dict[str, Tensor]]):
    """Rows of constant length: `input_ids` and `labels`, (seq_length,) each."""

    def __init__(self, input_ids: Tensor, labels: Tensor) -> None:
        self.input_ids = input_ids
        self.labels = labels

    def __len__(self) -> int:
        """How many rows."""
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One row; IndexError past the end, so that plain iteration stops."""
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


def pack_documents(documents: Sequence[Sequence[int]], separator_id: int, seq_length: int) -> PackedDataset:
    """Join documents by a separator token and cut the stream into rows of `seq_length` tokens.

    Rows do not overlap; `labels` are the ids one position on, across row ends, so there are
    (stream - 1) // seq_length rows, and what is left of the stream is dropped.
    Raises ValueError if there is not enough for one row.
    """
    stream: list[int] = []
    for number, document in enumerate(documents):
        stream.extend([separator_id] * (number > 0))
        stream.extend(document)
    rows = (len(stream) - 1) // seq_length if seq_length > 0 else 0
    if rows < 1:
        raise ValueError(f"{len(stream)} tokens do not fill one row of {seq_length}: give more text or shorter rows")
    ids = torch.tensor(stream[: rows * seq_length + 1])
    return PackedDataset(ids[:-1].view(rows, seq_length), ids[1:].view(rows, seq_length))
