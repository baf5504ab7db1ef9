"""Sums and means over masked tensors.

A mask is bool, or a number that is 0 outside and 1 inside; it broadcasts against the tensor.
Values outside the mask are replaced, not multiplied: an infinity or NaN there reaches neither the result
nor the gradient.
"""

import math

import torch
from torch import Tensor


def masked_sum(tensor: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """sum_i m_i x_i over `dim`, of `tensor` x where `mask` m is true (or nonzero); None sums everything."""
    kept = torch.where(mask.bool(), tensor, torch.zeros_like(tensor))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(tensor: Tensor, mask: Tensor, dim: int | None = None, empty: float = math.nan) -> Tensor:
    """sum_i m_i x_i / sum_i m_i over `dim`: masked sum by count of true positions; None averages everything.

    Over tokens it is GRPO's 1/|o| sum_t (arXiv:2402.03300, eq. 3). A mean over no position is `empty`: NaN, as 0/0
    says, unless told; its gradient is 0 either way.
    """
    positions = mask.bool().expand_as(tensor)
    count = positions.sum() if dim is None else positions.sum(dim)
    mean = masked_sum(tensor, mask, dim) / count.clamp(min=1)
    return mean.masked_fill(count == 0, empty)


def masked_normalize(tensor: Tensor, mask: Tensor, dim: int | None = None, normalize_constant: float = 1.0) -> Tensor:
    """sum_i m_i x_i / constant over `dim` (None: everything); the constant does not depend on the mask.

    Dr. GRPO (arXiv:2503.20783) takes the longest response allowed. Raises ValueError for a constant that is not
    positive.
    """
    if not normalize_constant > 0:
        raise ValueError(
            f"normalize_constant is {normalize_constant}: give a positive number, e.g. the maximal response length"
        )
    return masked_sum(tensor, mask, dim) / normalize_constant
