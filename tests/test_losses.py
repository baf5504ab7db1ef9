"""Policy-gradient losses against values by hand, gradient properties, and the one denominator."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from alignment_core.batching import TokenSequence, collate
from alignment_core.losses import (
    aggregate,
    batch_denominator,
    grpo_clip_loss,
    grpo_no_clip_loss,
    negative_log_likelihood,
    policy_gradient_loss,
    probability_ratio,
    reinforce_loss,
    token_sums,
)
from alignment_core.training_config import LengthNormalization, LossType

MODES: tuple[LengthNormalization, ...] = ("masked_mean", "masked_normalize", "token_mean", "constant")


def logs(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def column(*advantages: float) -> Tensor:
    return torch.tensor([[value] for value in advantages], dtype=torch.float64)


def test_negative_log_likelihood_and_reinforce_by_hand() -> None:
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    assert negative_log_likelihood(log_probs).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    advantages = torch.tensor([[2.0], [-0.5]])
    assert reinforce_loss(advantages, log_probs).tolist() == [[2.0, 4.0], [-1.5, -2.0]]


# Old probability 0.5 throughout, clip 0.2: ratios 0.5, 0.8 < 0.9, 1.1, 1.5.
CLIP_CASES = [
    # advantage, losses -min(rA, clip(r)A), low flags, high flags
    (2.0, [-1.0, -1.8, -2.2, -2.4], [0, 0, 0, 0], [0, 0, 0, 1]),
    (-2.0, [1.6, 1.8, 2.2, 3.0], [1, 0, 0, 0], [0, 0, 0, 0]),
]


@pytest.mark.parametrize(("advantage", "expected", "low", "high"), CLIP_CASES)
def test_clip_by_hand_for_both_signs(advantage: float, expected: list[float], low: list[int], high: list[int]) -> None:
    result = grpo_clip_loss(column(advantage), logs(0.25, 0.45, 0.55, 0.75), logs(0.5, 0.5, 0.5, 0.5), 0.2)
    np.testing.assert_allclose(result.loss[0], expected, rtol=1e-12)
    assert result.statistics["clip_fraction_low"][0].tolist() == low
    assert result.statistics["clip_fraction_high"][0].tolist() == high
    np.testing.assert_allclose(result.statistics["ratio_mean"][0], [0.5, 0.9, 1.1, 1.5], rtol=1e-12)


@pytest.mark.parametrize(
    ("advantage", "expected", "low", "high"),
    [
        # The range is [0.8, 1.4]: of the ratios 0.5, 0.9, 1.1, 1.5 the outer two are outside.
        (2.0, [-1.0, -1.8, -2.2, -2.8], [0, 0, 0, 0], [0, 0, 0, 1]),
        (-2.0, [1.6, 1.8, 2.2, 3.0], [1, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_clip_higher_moves_the_upper_bound_alone(
    advantage: float, expected: list[float], low: list[int], high: list[int]
) -> None:
    result = grpo_clip_loss(column(advantage), logs(0.25, 0.45, 0.55, 0.75), logs(0.5, 0.5, 0.5, 0.5), (0.2, 0.4))
    np.testing.assert_allclose(result.loss[0], expected, rtol=1e-12)
    assert result.statistics["clip_fraction_low"][0].tolist() == low
    assert result.statistics["clip_fraction_high"][0].tolist() == high


def test_clip_agrees_with_numpy() -> None:
    rng = np.random.default_rng(1)
    new, old, weights = rng.normal(-2, 1, (5, 7)), rng.normal(-2, 1, (5, 7)), rng.normal(size=(5, 1))
    ratio = np.exp(new - old)
    expected = -np.minimum(ratio * weights, np.clip(ratio, 0.7, 1.5) * weights)
    got = grpo_clip_loss(torch.tensor(weights), torch.tensor(new), torch.tensor(old), (0.3, 0.5))
    np.testing.assert_allclose(got.loss, expected, rtol=1e-12)
    clipped = (ratio < 0.7) & (weights < 0) | (ratio > 1.5) & (weights > 0)
    assert clipped.any()
    flags = got.statistics["clip_fraction_low"] + got.statistics["clip_fraction_high"]
    np.testing.assert_array_equal(flags, clipped)


@pytest.mark.parametrize(
    ("advantage", "flowing"), [(2.0, [True, True, True, False]), (-2.0, [False, True, True, True])]
)
def test_clipped_tokens_have_zero_gradient_and_the_others_the_ratio_s(advantage: float, flowing: list[bool]) -> None:
    log_probs = logs(0.25, 0.45, 0.55, 0.75).requires_grad_()
    grpo_clip_loss(column(advantage), log_probs, logs(0.5, 0.5, 0.5, 0.5), 0.2).loss.sum().backward()
    # d(-rA)/d(log p) = -rA where the clip is not taken.
    expected = [-r * advantage if flows else 0.0 for r, flows in zip((0.5, 0.9, 1.1, 1.5), flowing, strict=True)]
    np.testing.assert_allclose(log_probs.grad[0], expected, rtol=1e-12)


def test_no_clip_is_minus_ratio_times_advantage_with_gradient_beyond_the_range() -> None:
    log_probs = logs(0.25, 0.75).requires_grad_()
    result = grpo_no_clip_loss(column(2.0), log_probs, logs(0.5, 0.5))
    np.testing.assert_allclose(result.loss.detach()[0], [-1.0, -3.0], rtol=1e-12)
    assert "clip_fraction_low" not in result.statistics
    result.loss.sum().backward()
    np.testing.assert_allclose(log_probs.grad[0], [-1.0, -3.0], rtol=1e-12)


@pytest.mark.parametrize("loss_type", ["grpo_clip", "grpo_no_clip", "cispo"])
def test_on_policy_gradient_is_reinforce_and_nothing_is_clipped(loss_type: str) -> None:
    advantages = column(1.5, -0.7)
    values = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -0.1, -1.0]], dtype=torch.float64)
    ours, reference = values.clone().requires_grad_(), values.clone().requires_grad_()
    result = policy_gradient_loss(loss_type, ours, advantages, ours.detach(), 0.2)
    result.loss.sum().backward()
    policy_gradient_loss("reinforce_with_baseline", reference, advantages).loss.sum().backward()
    assert torch.equal(ours.grad, reference.grad)
    assert torch.equal(result.statistics["ratio_mean"], torch.ones_like(values))
    assert not result.statistics["approx_kl"].any()
    assert not result.statistics.get("clip_fraction_low", torch.zeros(1)).any()
    assert not result.statistics.get("clip_fraction_high", torch.zeros(1)).any()


EVERYWHERE = torch.ones(1, 3, dtype=torch.bool)


@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_zero_advantage_gives_zero_loss_and_zero_gradient(loss_type: LossType) -> None:
    log_probs = logs(0.1, 0.5, 0.9).requires_grad_()
    result = policy_gradient_loss(loss_type, log_probs, column(0.0), logs(0.5, 0.5, 0.5), 0.2, EVERYWHERE)
    result.loss.sum().backward()
    assert not result.loss.any()
    assert not log_probs.grad.any()


@pytest.mark.parametrize("loss_type", sorted(set(get_args(LossType)) - {"cispo"}))
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_gradients_are_those_of_the_loss(loss_type: LossType, advantage: float) -> None:
    # Ratios 0.5, 0.9, 1.5, far from the kinks; CISPO's gradient is, on purpose, not that of its value.
    log_probs = logs(0.25, 0.45, 0.75).requires_grad_()

    def loss(values: Tensor) -> Tensor:
        old = logs(0.5, 0.5, 0.5)
        return policy_gradient_loss(loss_type, values, column(advantage), old, (0.2, 0.3), EVERYWHERE).loss

    assert torch.autograd.gradcheck(loss, log_probs)


@pytest.mark.parametrize("loss_type", ["grpo_clip", "grpo_no_clip", "gspo", "cispo"])
def test_no_gradient_reaches_old_log_probs_or_advantages(loss_type: str) -> None:
    log_probs, old = logs(0.4, 0.6, 0.5).requires_grad_(), logs(0.5, 0.5, 0.5).requires_grad_()
    advantages = column(1.0).requires_grad_()
    result = policy_gradient_loss(loss_type, log_probs, advantages, old, 0.2, EVERYWHERE)
    result.loss.sum().backward()
    assert old.grad is None
    assert advantages.grad is None
    assert not any(values.requires_grad for values in result.statistics.values())


def test_a_wild_log_ratio_stays_finite() -> None:
    log_probs = torch.tensor([[0.0, -1000.0]], requires_grad=True)
    old = torch.tensor([[-1000.0, 0.0]])
    torch.testing.assert_close(probability_ratio(log_probs, old), torch.tensor([[math.exp(20), math.exp(-20)]]))
    for result in (
        grpo_clip_loss(torch.tensor([[-1.0]]), log_probs, old, 0.2),
        grpo_no_clip_loss(torch.tensor([[1.0]]), log_probs, old),
    ):
        result.loss.sum().backward()
        assert result.loss.isfinite().all()
        assert log_probs.grad.isfinite().all()


def test_approximate_kl_by_hand() -> None:
    result = grpo_no_clip_loss(column(1.0), logs(0.25, 0.75), logs(0.5, 0.5))
    # r - 1 - log r at r = 1/2 and 3/2.
    expected = [-0.5 + math.log(2), 0.5 - math.log(1.5)]
    np.testing.assert_allclose(result.statistics["approx_kl"][0], expected, rtol=1e-12)


def test_dispatch_refuses_what_is_missing() -> None:
    with pytest.raises(ValueError, match="needs old_log_probs"):
        policy_gradient_loss("grpo_clip", logs(0.5), column(1.0), None, 0.2)
    with pytest.raises(ValueError, match="needs cliprange"):
        policy_gradient_loss("grpo_clip", logs(0.5), column(1.0), logs(0.5))
    with pytest.raises(ValueError, match="needs the response mask"):
        policy_gradient_loss("gspo", logs(0.5), column(1.0), logs(0.5), 0.2)
    with pytest.raises(ValueError, match="unknown loss_type 'ppo'"):
        policy_gradient_loss("ppo", logs(0.5), column(1.0), logs(0.5))


@pytest.mark.parametrize("cliprange", [0.0, -0.2, (0.2, 0.0), (0.0, 0.2)])
def test_a_range_that_is_none_is_refused(cliprange: float | tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        grpo_clip_loss(column(1.0), logs(0.5), logs(0.5), cliprange)


@pytest.mark.parametrize("advantages", [torch.ones(2), torch.ones(1, 2), torch.ones(2, 2), torch.ones(3, 1)])
def test_advantages_must_be_a_column(advantages: Tensor) -> None:
    # Two sequences of two tokens: a vector of two would silently weigh positions.
    with pytest.raises(ValueError, match=r"give \(B, 1\) and \(B, T\)"):
        reinforce_loss(advantages, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"give \(B, 1\) and \(B, T\)"):
        grpo_clip_loss(advantages, torch.zeros(2, 2), torch.zeros(2, 2), 0.2)


def test_policies_must_score_the_same_tokens() -> None:
    with pytest.raises(ValueError, match="score the same tokens"):
        probability_ratio(torch.zeros(2, 3), torch.zeros(1, 3))


def test_aggregate_by_hand() -> None:
    per_token = torch.tensor([[1.0, 2.0, 100.0], [4.0, 100.0, 100.0], [100.0, 100.0, 100.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    # Three sequences, the last one empty: it adds nothing and counts as a sequence.
    assert batch_denominator([2, 1, 0], "masked_mean") == batch_denominator([2, 1, 0], "masked_normalize") == 3
    assert batch_denominator([2, 1, 0], "token_mean") == 3
    assert aggregate(per_token, mask, "masked_mean", 3).item() == pytest.approx((1.5 + 4) / 3)
    assert aggregate(per_token, mask, "masked_normalize", 3, 10.0).item() == pytest.approx((3 + 4) / 10 / 3)
    assert aggregate(per_token, mask, "constant", 3, 10.0).item() == pytest.approx((3 + 4) / 10 / 3)
    assert aggregate(per_token, mask, "token_mean", 3).item() == pytest.approx((3 + 4) / 3)
    assert aggregate(per_token, mask.float(), "masked_mean", 3).item() == pytest.approx((1.5 + 4) / 3)


def test_empty_responses_leave_the_gradient_finite() -> None:
    per_token = torch.ones(2, 3, requires_grad=True)
    mask = torch.tensor([[1, 0, 0], [0, 0, 0]]).bool()
    aggregate(per_token, mask, "masked_mean", 2).backward()
    assert per_token.grad.tolist() == [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("mode", "denominator", "constant", "message"),
    [
        ("masked_mean", 0, None, "batch_denominator"),
        ("masked_normalize", 2, None, "masked_normalize needs a constant"),
        ("constant", 2, None, "constant needs a constant"),
        ("constant", 2, 0.0, "normalize_constant is 0"),
        ("mean", 2, None, "unknown length normalization 'mean'"),
    ],
)
def test_aggregate_refuses_nonsense(mode: str, denominator: float, constant: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aggregate(torch.ones(1, 1), torch.ones(1, 1), mode, denominator, constant)


@pytest.mark.parametrize(("lengths", "mode"), [([], "masked_mean"), ([0, 0], "token_mean")])
def test_a_batch_of_nothing_has_no_denominator(lengths: list[int], mode: LengthNormalization) -> None:
    with pytest.raises(ValueError, match="to learn from"):
        batch_denominator(lengths, mode)


LENGTHS = [3, 9, 1, 5, 0, 7, 2, 4, 6, 8, 1]


def total_loss(weight: Tensor, size: int, mode: LengthNormalization, loss_type: str) -> float:
    """Loss of 11 sequences in micro-batches of `size` rows, each padded to its own longest; backward along the way."""
    rng = np.random.default_rng(3)
    responses = [rng.integers(1, 20, n).tolist() for n in LENGTHS]
    advantages = torch.tensor(rng.normal(size=(len(LENGTHS), 1)))
    old = [torch.tensor(rng.normal(-3, 0.5, size=n)) for n in LENGTHS]
    denominator = batch_denominator(LENGTHS, mode)
    total = 0.0
    for start in range(0, len(LENGTHS), size):
        rows = slice(start, start + size)
        batch = collate([TokenSequence([1, 2], response) for response in responses[rows]], pad_id=0)
        log_probs = weight.log_softmax(-1)[batch.input_ids, batch.labels]
        old_log_probs = torch.zeros_like(log_probs)
        old_log_probs[batch.response_mask] = torch.cat(old[rows])
        mask = batch.response_mask
        per_token = policy_gradient_loss(loss_type, log_probs, advantages[rows], old_log_probs, 0.2, mask).loss
        loss = aggregate(per_token, mask, mode, denominator, constant=10.0)
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss_type", ["reinforce_with_baseline", "grpo_clip", "gspo", "cispo"])
def test_loss_and_gradient_do_not_depend_on_the_micro_batch(mode: LengthNormalization, loss_type: str) -> None:
    start = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = start.clone().requires_grad_()
    expected = total_loss(whole, len(LENGTHS), mode, loss_type)
    assert abs(expected) > 1e-3
    for size in (1, 2, 8):
        part = start.clone().requires_grad_()
        assert total_loss(part, size, mode, loss_type) == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(part.grad, whole.grad, rtol=1e-10, atol=1e-14)


def test_the_normalizations_differ_but_for_whose_the_constant_is() -> None:
    start = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = [total_loss(start.clone().requires_grad_(), 4, mode, "reinforce_with_baseline") for mode in MODES]
    assert len({round(value, 6) for value in values}) == 3
    assert values[MODES.index("constant")] == values[MODES.index("masked_normalize")]


def test_token_sums_add_up_over_micro_batches() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[1, 0], [1, 1]]).bool()
    whole = token_sums({"ratio_mean": values}, mask)["ratio_mean"]
    parts = sum(token_sums({"ratio_mean": values[[row]]}, mask[[row]])["ratio_mean"] for row in (0, 1))
    assert whole.item() == parts.item() == 8.0
    assert not whole.requires_grad
