"""Batches: shifted labels, masks from lengths, token budgets, packed rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_core.batching import Batch, TokenSequence, collate, micro_batches, pack_documents

EOS = 0
SEQUENCES = [
    TokenSequence([5, 6], [7, 8, EOS]),
    TokenSequence([9], [EOS]),
    TokenSequence([3, EOS, 4], []),
]


def test_collate_shifts_pads_and_masks_by_length_where_eos_is_the_padding() -> None:
    batch = collate(SEQUENCES, pad_id=EOS)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0], [3, 0, 4, 0]]
    assert batch.labels.tolist() == [[6, 7, 8, 0], [0, 0, 0, 0], [0, 4, 0, 0]]
    assert batch.response_mask.tolist() == [
        [False, True, True, True],
        [True, False, False, False],
        [False, False, False, False],
    ]
    assert (batch.input_ids.dtype, batch.labels.dtype, batch.response_mask.dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )


def test_the_padding_id_changes_neither_mask_nor_masked_labels() -> None:
    with_eos, with_other = collate(SEQUENCES, pad_id=EOS), collate(SEQUENCES, pad_id=63)
    assert torch.equal(with_eos.response_mask, with_other.response_mask)
    mask = with_eos.response_mask
    assert torch.equal(with_eos.labels[mask], with_other.labels[mask])
    assert with_other.labels[mask].tolist() == [7, 8, EOS, EOS]


def test_to_moves_every_tensor() -> None:
    moved = collate(SEQUENCES, EOS).to("meta")
    assert isinstance(moved, Batch)
    assert {moved.input_ids.device.type, moved.labels.device.type, moved.response_mask.device.type} == {"meta"}


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "at least one sequence"),
        ([TokenSequence([1], [])], "nothing to predict"),
        ([TokenSequence([1], [2]), TokenSequence([], [2, 3])], "sequence 1 has an empty prompt"),
    ],
)
def test_collate_refuses_what_cannot_be_scored(sequences: list[TokenSequence], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(sequences, EOS)


def test_micro_batches_by_hand() -> None:
    # Longest first: 9 alone exceeds 8; 4+4 fill 8; 3 with 2 makes 2 rows of 3.
    assert micro_batches([4, 9, 2, 4, 3], 8) == [[1], [0, 3], [4, 2]]
    assert micro_batches([], 8) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 120))
def test_micro_batches_keep_every_index_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    ordered = [lengths[index] for batch in batches for index in batch]
    assert ordered == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    # Greedy: the head of the next batch would not have fitted.
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


@pytest.mark.parametrize(("lengths", "budget"), [([3], 0), ([3, 0], 8)])
def test_micro_batches_refuses_nonsense(lengths: list[int], budget: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        micro_batches(lengths, budget)


def test_packed_rows_do_not_overlap_and_labels_run_one_ahead() -> None:
    # Stream: 1 2 3 0 4 5 0 6 7 8; two rows of 4, the rest is dropped.
    packed = pack_documents([[1, 2, 3], [4, 5], [6, 7, 8]], separator_id=0, seq_length=4)
    assert [row["input_ids"].tolist() for row in packed] == [[1, 2, 3, 0], [4, 5, 0, 6]]
    assert [row["labels"].tolist() for row in packed] == [[2, 3, 0, 4], [5, 0, 6, 7]]
    assert len(packed) == 2


@pytest.mark.parametrize("length", [5, 0])
def test_packing_too_little_text_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="do not fill one row"):
        pack_documents([[1, 2], [3, 4]], separator_id=0, seq_length=length)
