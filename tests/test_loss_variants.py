"""GSPO, CISPO, importance weights, KL to a reference and DPO: values by hand, and where their gradients flow."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from alignment_core.losses import (
    aggregate,
    cispo_loss,
    dpo_loss,
    grpo_clip_loss,
    gspo_loss,
    implicit_rewards,
    importance_weights,
    kl_to_reference,
    reinforce_loss,
)


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def column(*advantages: float) -> Tensor:
    return torch.tensor([[value] for value in advantages], dtype=torch.float64)


# Two response tokens each (the third position is padding): token ratios 1/2 and 2, and 4 and 4.
NEW = logs([0.1, 0.8, 0.9], [0.8, 0.4, 0.9])
OLD = logs([0.2, 0.4, 0.1], [0.2, 0.1, 0.1])
MASK = torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()


@pytest.mark.parametrize(
    ("advantages", "losses", "low", "high"),
    [
        # s = sqrt(1/2 * 2) = 1 and sqrt(4 * 4) = 4, which a positive advantage clips to 3.
        ((2.0, 2.0), [-2.0, -6.0], [0, 0], [0, 1]),
        ((-2.0, -2.0), [2.0, 8.0], [0, 0], [0, 0]),
    ],
)
def test_gspo_by_hand(advantages: tuple[float, float], losses: list[float], low: list[int], high: list[int]) -> None:
    result = gspo_loss(column(*advantages), NEW, OLD, MASK, (0.5, 2.0))
    per_sequence = [aggregate(result.loss[[row]], MASK[[row]], "masked_mean", 1).item() for row in (0, 1)]
    assert per_sequence == pytest.approx(losses, rel=1e-12)
    for name, expected in (("low", low), ("high", high)):
        flags = result.statistics[f"clip_fraction_{name}"]
        assert [flags[row, 0].item() for row in (0, 1)] == expected
        assert torch.equal(flags[:, 0], flags[:, 1])


def test_gspo_clips_low_for_a_negative_advantage() -> None:
    result = gspo_loss(column(-1.0, 1.0), OLD, NEW, MASK, (0.5, 2.0))
    # s = 1 and 1/4: only the second is below 1/2, and its advantage is positive.
    assert not result.statistics["clip_fraction_low"].any()
    result = gspo_loss(column(-1.0, -1.0), OLD, NEW, MASK, (0.5, 2.0))
    assert result.statistics["clip_fraction_low"][:, 0].tolist() == [0, 1]
    assert result.loss[1, 0].item() == pytest.approx(0.5)


def test_gspo_s_gradient_goes_through_the_mean_and_stops_where_a_sequence_is_clipped() -> None:
    log_probs = NEW.clone().requires_grad_()
    result = gspo_loss(column(2.0, 2.0), log_probs, OLD, MASK, (0.5, 2.0))
    aggregate(result.loss, MASK, "masked_mean", 1).backward()
    # d(-s A)/d(log p_t) = -s A / n for each of the n tokens, s = 1; the second sequence is clipped.
    np.testing.assert_allclose(log_probs.grad, [[-1.0, -1.0, 0.0], [0.0, 0.0, 0.0]], rtol=1e-12)


def test_gspo_on_policy_is_reinforce_of_the_masked_mean() -> None:
    ours, plain = NEW.clone().requires_grad_(), NEW.clone().requires_grad_()
    advantages = column(1.5, -0.5)
    aggregate(gspo_loss(advantages, ours, ours.detach(), MASK, 3e-4).loss, MASK, "masked_mean", 2).backward()
    aggregate(reinforce_loss(advantages, plain), MASK, "masked_mean", 2).backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_gspo_of_an_empty_response_is_finite() -> None:
    log_probs = NEW.clone().requires_grad_()
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    result = gspo_loss(column(1.0, 1.0), log_probs, OLD, mask, 0.2)
    aggregate(result.loss, mask, "masked_mean", 2).backward()
    assert log_probs.grad.isfinite().all()
    assert not log_probs.grad[1].any()


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_by_hand(advantage: float) -> None:
    log_probs = logs([0.25, 0.45, 0.75]).requires_grad_()
    result = cispo_loss(column(advantage), log_probs, logs([0.5, 0.5, 0.5]), (0.2, 0.3))
    # Ratios 0.5, 0.9, 1.5 clipped to 0.8, 0.9, 1.3: weights of log p, constants for the gradient.
    weights = np.array([0.8, 0.9, 1.3]) * advantage
    np.testing.assert_allclose(result.loss.detach()[0], -weights * np.log([0.25, 0.45, 0.75]), rtol=1e-12)
    result.loss.sum().backward()
    np.testing.assert_allclose(log_probs.grad[0], -weights, rtol=1e-12)
    assert result.statistics["clip_fraction_low"].tolist() == [[1, 0, 0]]
    assert result.statistics["clip_fraction_high"].tolist() == [[0, 0, 1]]


def test_cispo_keeps_a_gradient_where_the_clip_loses_it() -> None:
    ours, clipped = logs([0.75]).requires_grad_(), logs([0.75]).requires_grad_()
    cispo_loss(column(1.0), ours, logs([0.5]), 0.2).loss.sum().backward()
    grpo_clip_loss(column(1.0), clipped, logs([0.5]), 0.2).loss.sum().backward()
    assert ours.grad.item() == pytest.approx(-1.2)
    assert clipped.grad.item() == 0.0


def test_importance_weights_by_hand_capped_above_alone_and_without_gradient() -> None:
    old = logs([0.1, 0.5, 0.9]).requires_grad_()
    sampler = logs([0.4, 0.5, 0.2]).requires_grad_()
    weights = importance_weights(old, sampler, 2.0)
    np.testing.assert_allclose(weights[0], [0.25, 1.0, 2.0], rtol=1e-12)
    assert not weights.requires_grad


def test_kl_to_reference_by_hand() -> None:
    log_probs, reference = logs([0.5, 0.25, 0.3]).requires_grad_(), logs([0.25, 0.5, 0.3]).requires_grad_()
    divergence = kl_to_reference(log_probs, reference)
    # q/p - log(q/p) - 1 at q/p = 1/2, 2, 1; gradient 1 - q/p.
    expected = [0.5 + math.log(2) - 1, 2 - math.log(2) - 1, 0.0]
    np.testing.assert_allclose(divergence.detach()[0], expected, rtol=1e-12, atol=1e-15)
    divergence.sum().backward()
    np.testing.assert_allclose(log_probs.grad[0], [0.5, -1.0, 0.0], rtol=1e-12, atol=1e-15)
    assert reference.grad is None
    assert torch.autograd.gradcheck(lambda values: kl_to_reference(values, reference.detach()), log_probs)


def test_kl_to_reference_is_the_divergence_on_average() -> None:
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    estimates = kl_to_reference(torch.tensor(policy).log()[None], torch.tensor(reference).log()[None])[0]
    assert float((torch.tensor(policy) * estimates).sum()) == pytest.approx(np.sum(policy * np.log(policy / reference)))


def test_kl_to_a_far_reference_stays_finite() -> None:
    log_probs = torch.tensor([[0.0, -900.0]], requires_grad=True)
    divergence = kl_to_reference(log_probs, torch.tensor([[-900.0, 0.0]]))
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert log_probs.grad.isfinite().all()


PAIRS = [torch.tensor(values) for values in ([-10.0, -8.0], [-12.0, -6.0], [-11.0, -8.0], [-11.0, -8.0])]
"""Policy chosen and rejected, reference chosen and rejected; margins 1 - (-1) = 2 and 0 - 2 = -2."""


def test_dpo_by_hand() -> None:
    losses = dpo_loss(*PAIRS, beta=0.5)
    torch.testing.assert_close(losses, torch.tensor([math.log1p(math.exp(-1)), math.log1p(math.exp(1))]))
    assert implicit_rewards(PAIRS[0], PAIRS[2], 0.5).tolist() == [0.5, 0.0]
    assert implicit_rewards(PAIRS[1], PAIRS[3], 0.5).tolist() == [-0.5, 1.0]


def test_dpo_label_smoothing_by_hand() -> None:
    losses = dpo_loss(*PAIRS, beta=0.5, label_smoothing=0.25)
    right, wrong = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    torch.testing.assert_close(losses, torch.tensor([0.75 * right + 0.25 * wrong, 0.75 * wrong + 0.25 * right]))


def test_dpo_agrees_with_numpy_and_names_its_arguments_as_the_paper_s_code() -> None:
    chosen, rejected, ref_chosen, ref_rejected = np.random.default_rng(2).normal(-20, 5, (4, 6))
    margin = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    got = dpo_loss(
        policy_chosen_logps=torch.tensor(chosen),
        policy_rejected_logps=torch.tensor(rejected),
        reference_chosen_logps=torch.tensor(ref_chosen),
        reference_rejected_logps=torch.tensor(ref_rejected),
        beta=0.3,
    )
    assert got.shape == (6,)
    np.testing.assert_allclose(got, np.log1p(np.exp(-margin)), rtol=1e-10)


def test_dpo_of_the_reference_itself_is_log_two() -> None:
    assert dpo_loss(PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[1], 0.1).tolist() == pytest.approx([math.log(2)] * 2)


def test_dpo_gradient_raises_chosen_and_lowers_rejected_and_spares_the_reference() -> None:
    chosen, rejected, ref_chosen, ref_rejected = (torch.tensor([-5.0], requires_grad=True) for _ in range(4))
    dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1).sum().backward()
    # At equal margins: -beta * sigmoid(0).
    assert chosen.grad.item() == pytest.approx(-0.05)
    assert rejected.grad.item() == pytest.approx(0.05)
    assert ref_chosen.grad is None
    assert ref_rejected.grad is None


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_gradcheck(smoothing: float) -> None:
    values = [one.double().requires_grad_(number < 2) for number, one in enumerate(PAIRS)]
    assert torch.autograd.gradcheck(lambda c, r: dpo_loss(c, r, values[2], values[3], 0.5, smoothing), values[:2])


def test_dpo_stays_finite_at_huge_margins() -> None:
    chosen = torch.tensor([-1e5, 1e5], requires_grad=True)
    losses = dpo_loss(chosen, torch.zeros(2), torch.zeros(2), torch.zeros(2), 1.0)
    losses.sum().backward()
    assert losses.tolist() == [1e5, 0.0]
    assert chosen.grad.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize(("beta", "smoothing"), [(0.0, 0.0), (-0.1, 0.0), (0.1, -0.1), (0.1, 0.5)])
def test_dpo_refuses_what_teaches_nothing(beta: float, smoothing: float) -> None:
    with pytest.raises(ValueError, match="must be positive and label_smoothing"):
        dpo_loss(*PAIRS, beta=beta, label_smoothing=smoothing)
