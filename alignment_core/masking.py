"""Sums and means over masked tensors.

Values outside the mask are replaced, not multiplied: an infinity or NaN there reaches neither the result
nor the gradient.
"""

import math

import torch
from torch import Tensor


def masked_sum(tensor: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `tensor` where `mask` is true (or nonzero), over `dim`; None sums everything."""
    kept = torch.where(mask.bool(), tensor, torch.zeros_like(tensor))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(tensor: Tensor, mask: Tensor, dim: int | None = None, empty: float = math.nan) -> Tensor:
    """Masked sum divided by the number of true positions, over `dim`; None averages everything.

    A mean over no position is `empty`: NaN, as 0/0 says, unless told; its gradient is 0 either way.
    """
    positions = mask.bool().expand_as(tensor)
    count = positions.sum() if dim is None else positions.sum(dim)
    mean = masked_sum(tensor, mask, dim) / count.clamp(min=1)
    return mean.masked_fill(count == 0, empty)


def masked_normalize(tensor: Tensor, mask: Tensor, dim: int | None = None, normalize_constant: float = 1.0) -> Tensor:
    """Masked sum over `dim` divided by a constant that does not depend on the mask (e.g. the longest response)."""
    if normalize_constant == 0:
        raise ValueError("normalize_constant is 0: give a positive number, e.g. the maximal response length")
    return masked_sum(tensor, mask, dim) / normalize_constant
