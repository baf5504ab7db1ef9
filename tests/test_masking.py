"""Masked sums and means: values by hand, empty masks, and what lies outside the mask."""

import math

import pytest
import torch

from alignment_core.masking import masked_mean, masked_normalize, masked_sum

VALUES = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
MASK = torch.tensor([[True, False, True], [False, True, False]])


@pytest.mark.parametrize(
    ("dim", "total", "mean"),
    [
        (None, 24.0, 8.0),
        (0, [1.0, 20.0, 3.0], [1.0, 20.0, 3.0]),
        (1, [4.0, 20.0], [2.0, 20.0]),
        (-1, [4.0, 20.0], [2.0, 20.0]),
    ],
)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_sum_mean_and_constant_over_every_dimension(
    dim: int | None, total: object, mean: object, kind: torch.dtype
) -> None:
    mask = MASK.to(kind)
    assert torch.equal(masked_sum(VALUES, mask, dim), torch.tensor(total))
    assert torch.equal(masked_mean(VALUES, mask, dim), torch.tensor(mean))
    assert torch.equal(masked_normalize(VALUES, mask, dim, 4.0), torch.tensor(total) / 4)


def test_mean_over_nothing_is_nan_unless_told() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    means = masked_mean(VALUES, mask, dim=1)
    assert means[0] == 1.5
    assert math.isnan(means[1])
    assert torch.equal(masked_mean(VALUES, mask, dim=1, empty=0.0), torch.tensor([1.5, 0.0]))


def test_an_empty_row_leaves_the_gradient_finite() -> None:
    values = VALUES.clone().requires_grad_()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    with torch.autograd.set_detect_anomaly(True):
        masked_mean(values, mask, dim=1, empty=0.0).sum().backward()
    assert torch.equal(values.grad, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_values_outside_the_mask_reach_neither_result_nor_gradient(poison: float) -> None:
    values = torch.tensor([[1.0, poison, 3.0]], requires_grad=True)
    result = masked_mean(values, torch.tensor([[1, 0, 1]]), dim=1)
    result.sum().backward()
    assert result.item() == 2.0
    assert torch.equal(values.grad, torch.tensor([[0.5, 0.0, 0.5]]))


@pytest.mark.parametrize("constant", [0, -1.0, math.nan])
def test_a_constant_that_is_not_positive_is_refused(constant: float) -> None:
    with pytest.raises(ValueError, match="maximal response length"):
        masked_normalize(VALUES, MASK, normalize_constant=constant)


def test_a_mask_of_one_row_covers_every_row() -> None:
    mask = torch.tensor([[1.0, 0.0, 1.0]])
    assert masked_sum(VALUES, mask, 1).tolist() == [4.0, 40.0]
    assert masked_mean(VALUES, mask, 1).tolist() == [2.0, 20.0]
    assert masked_mean(VALUES, mask).item() == 11.0


def test_sums_and_means_pass_gradcheck() -> None:
    values = VALUES.double().requires_grad_()
    for reduce in (masked_sum, masked_mean, masked_normalize):
        assert torch.autograd.gradcheck(lambda x, reduce=reduce: reduce(x, MASK, 1), values)
