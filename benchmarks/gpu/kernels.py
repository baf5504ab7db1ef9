"""The attention kernels of packed rows by name: which of them are here, and how one is made to run."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn

from alignment_core import attention
from alignment_core.attention import KERNELS, Kernel
from alignment_core.batching import TokenSequence, pack
from alignment_core.models import ComputeDtype, autocast
from benchmarks.gpu import common


@contextmanager
def forced(kernel: Kernel | None) -> Iterator[None]:
    """Packed rows go through `kernel`, backward passes included; None leaves the choice to the core."""
    if kernel is None:
        yield
        return
    with patch.object(attention, "choose_kernel", lambda device, dtype: kernel):
        yield


def chosen(device: torch.device, dtype: ComputeDtype) -> Kernel:
    """What the core picks here."""
    with autocast(device, dtype):
        return attention.choose_kernel(device, torch.float32)


def absent(device: torch.device, dtype: ComputeDtype) -> dict[Kernel, str | None]:
    """Every kernel the core knows, with why it cannot run on `device` in this type; None if it can."""
    return {kernel: _refusal(kernel, device, getattr(torch, dtype)) for kernel in KERNELS}


def _refusal(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str | None:
    """The first line of what it says to a small row, forth and back."""
    row = pack([TokenSequence([1, 2], [3, 4]), TokenSequence([1, 2], [3, 4, 5])]).to(device)
    tokens = row.input_ids.shape[1]
    query, key, value = (
        torch.ones(1, heads, tokens, 64, device=device, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)
    )
    try:
        with forced(kernel):
            mixed, _ = attention.packed_attention(nn.Module(), query, key, value, None, layout=row.layout)
            mixed.sum().backward()
        common.synchronize(device)
    except (ImportError, RuntimeError, ValueError) as error:
        return str(error).partition("\n")[0][:200]
    return None
