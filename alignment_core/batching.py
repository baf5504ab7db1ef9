"""Token ids into batches: shifted labels, masks from lengths, packed rows, token budgets.

Scores and losses are (B, T) with right padding: small numbers, and one row per sequence. The model itself runs over
one packed row of N tokens instead, without padding. Sequences that begin with the same prompt, such as the G
completions of a problem, hold it once there:

    row        | prompt a | response 1 | response 2 | prompt b | response 3 |                  N tokens
    attention  | prompt a | response 1 | prompt a | response 2 | prompt b | response 3 |       what `spread` picks

Everything that works token by token, all weights that is, runs over the row; attention alone sees whole sequences,
each of them causal and blind to the others. The last token of a sequence predicts nothing and is left out.
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


@dataclass(frozen=True)
class Layout:
    """Where S sequences of a packed row lie, for an attention kernel."""

    lengths: tuple[int, ...]
    """Tokens of each sequence, as attention sees it."""
    offsets: Tensor
    """(S + 1,) int32: where each sequence starts, and the end of the last."""
    spread: Tensor | None = None
    """(M,) int64, M = sum(lengths): the token of the row that stands at each position of the sequences laid end to
    end; None if the row itself is that, which is so when nothing is shared."""
    gather: Tensor | None = None
    """(N,) int64: where in the sequences laid end to end the row's tokens are taken from again."""

    def to(self, device: torch.device | str) -> Self:
        """The same layout on another device."""
        return type(self)(
            self.lengths,
            self.offsets.to(device, non_blocking=True),
            None if self.spread is None else self.spread.to(device, non_blocking=True),
            None if self.gather is None else self.gather.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class PackedRow:
    """N tokens of several sequences in one row."""

    input_ids: Tensor
    """(1, N) int64."""
    position_ids: Tensor
    """(1, N) int64, from 0 in every sequence."""
    predictors: Tensor
    """(R,) int64: the token of the row whose hidden state predicts each response token, sequence by sequence."""
    layout: Layout

    def to(self, device: torch.device | str) -> Self:
        """The same row on another device."""
        ids, positions, predictors = (
            tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.position_ids, self.predictors)
        )
        return type(self)(ids, positions, predictors, self.layout.to(device))


@dataclass
class Batch:
    """B right-padded sequences of T positions; `labels[b, t]` is the token that follows `input_ids[b, t]`."""

    input_ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T) int64."""
    response_mask: Tensor
    """(B, T) bool, true exactly where the label is a response token."""
    packed: PackedRow | None = None
    """The same sequences without padding, for models prepared for it; None where the lengths are not known."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return type(self)(
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            response_mask=self.response_mask.to(device, non_blocking=True),
            packed=None if self.packed is None else self.packed.to(device),
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
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), is_response[:, 1:].contiguous(), pack(sequences))
    return batch.to(device)


def pack(sequences: Sequence[TokenSequence]) -> PackedRow:
    """Sequences, each with a prompt, in one row; equal prompts are held once."""
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    spread: list[int] = []
    gather: list[int] = []
    lengths: list[int] = []
    starts: dict[tuple[int, ...], int] = {}
    for sequence in sequences:
        prompt, said = tuple(sequence.prompt_ids), sequence.response_ids[:-1]
        fresh = prompt not in starts
        start = starts.setdefault(prompt, len(ids))
        if fresh:
            gather.extend(range(len(spread), len(spread) + len(prompt)))
            ids.extend(prompt)
            positions.extend(range(len(prompt)))
        prompt_row, said_row = range(start, start + len(prompt)), range(len(ids), len(ids) + len(said))
        spread.extend(prompt_row)
        gather.extend(range(len(spread), len(spread) + len(said)))
        spread.extend(said_row)
        ids.extend(said)
        positions.extend(range(len(prompt), len(prompt) + len(said)))
        if sequence.response_ids:
            predictors.append(prompt_row[-1])
            predictors.extend(said_row)
        lengths.append(len(prompt) + len(said))
    shared = len(spread) > len(ids)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    layout = Layout(
        tuple(lengths), offsets, torch.tensor(spread) if shared else None, torch.tensor(gather) if shared else None
    )
    return PackedRow(
        torch.tensor(ids)[None], torch.tensor(positions)[None], torch.tensor(predictors, dtype=torch.long), layout
    )


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


def packed_batches(sequences: Sequence[TokenSequence], max_tokens: int, together: int = 1) -> list[list[int]]:
    """Split sequences into index lists whose packed rows hold at most `max_tokens` tokens, equal prompts once.

    Sequences of one prompt stay together, in the order of the first of them; every `together` of them in a row (the
    two of a preference pair) are never parted. Those that exceed the budget alone get a row of their own.
    Raises ValueError for a budget or a length that is not positive.
    """
    if max_tokens <= 0 or any(sequence.length <= 0 for sequence in sequences):
        raise ValueError(f"token budget {max_tokens} and all sequence lengths must be positive")
    prompts = [tuple(sequence.prompt_ids) for sequence in sequences]
    groups: dict[tuple[int, ...], list[range]] = {}
    for unit in _units(sequences, together):
        groups.setdefault(prompts[unit[0]], []).append(unit)
    batches: list[list[int]] = []
    room, held = 0, set[tuple[int, ...]]()
    for unit in (unit for members in groups.values() for unit in members):
        own = {prompts[index] for index in unit}
        responses = sum(len(sequences[index].response_ids) for index in unit)
        if not batches or responses + sum(map(len, own - held)) > room:
            batches.append([])
            room, held = max_tokens, set()
        room -= responses + sum(map(len, own - held))
        held |= own
        batches[-1].extend(unit)
    return batches


def plan_batches(
    sequences: Sequence[TokenSequence], max_tokens: int, packed: bool, together: int = 1
) -> list[list[int]]:
    """Micro-batches of at most `max_tokens` tokens, counted as the model will run them: packed, or padded.

    Every `together` sequences in a row share a micro-batch.
    """
    if packed:
        return packed_batches(sequences, max_tokens, together)
    units = _units(sequences, together)
    sizes = [together * max(sequences[index].length for index in unit) for unit in units]
    return [[index for number in part for index in units[number]] for part in micro_batches(sizes, max_tokens)]


def _units(sequences: Sequence[TokenSequence], together: int) -> list[range]:
    """Indices of what must not be parted."""
    return [range(first, first + together) for first in range(0, len(sequences), together)]


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
