"""Whose a failure is, where torch itself does not say."""

import pytest
import torch

from alignment_core.failures import OWN, MemberError, torch_told


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError, "fewer tokens at a time"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), MemberError, "goes on from the last"),
        (RuntimeError("NCCL communicator was aborted on rank 1"), MemberError, "the accelerator failed"),
        (RuntimeError("shape '[3]' is invalid for input of size 4"), RuntimeError, "^shape"),
        (ValueError("none is right"), ValueError, "^none is right$"),
    ],
)
def test_what_torch_raises_becomes_what_it_means(raised: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught, torch_told():
        raise raised
    assert type(caught.value) is kind
    assert isinstance(caught.value, OWN) is (kind is not RuntimeError)
