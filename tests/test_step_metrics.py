"""The record of a step: every documented metric is there, and sums over micro-batches are means over tokens."""

import math
from typing import Any

import pytest
import torch
from tiny_loops import OFF_POLICY, TOKENIZER, run_grpo
from tiny_models import tiny_model

from alignment_core.losses import grpo_clip_loss
from alignment_core.step_metrics import ALWAYS, SOMETIMES, StepStatistics, peak_memory_gb, throughput

MASK = torch.tensor([[True, True, False], [True, False, False]])


def logs(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_policy_statistics_by_hand() -> None:
    statistics = StepStatistics()
    ours = logs([[0.5, 0.4, 0.9], [0.3, 0.1, 0.1]])
    theirs = logs([[0.25, 0.4, 0.1], [0.6, 0.9, 0.9]])
    for row in (0, 1):
        entropy = torch.tensor([[1.0, 2.0, 50.0], [6.0, 50.0, 50.0]])[[row]]
        statistics.add_policy(ours[[row]], entropy, theirs[[row]], MASK[[row]])
    metrics = statistics.metrics(3)
    assert metrics["train/entropy"] == pytest.approx(3.0)
    # Ratios 2, 1 and 1/2 over the three response tokens.
    assert metrics["train/sampler_ratio_mean"] == pytest.approx(3.5 / 3)
    assert metrics["train/sampler_ratio_max"] == pytest.approx(2.0)
    assert metrics["train/sampler_gap"] == pytest.approx(2 * math.log(2) / 3)
    assert metrics["train/sampler_gap_max"] == pytest.approx(math.log(2))
    assert metrics["train/ratio_mean"] == metrics["train/ratio_max"] == 1.0
    assert metrics["train/clip_fraction_low"] == metrics["train/approx_kl"] == 0.0


def test_loss_statistics_are_averaged_over_epochs_and_tokens() -> None:
    statistics = StepStatistics()
    old = logs([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    for new in (old, logs([[0.75, 0.5, 0.01], [0.25, 0.99, 0.99]])):
        loss = grpo_clip_loss(torch.tensor([[1.0], [-1.0]]), new, old, 0.2)
        statistics.add_loss(loss, MASK, 1 / 2)
    metrics = statistics.metrics(3)
    assert metrics["train/ratio_mean"] == pytest.approx((3 + 1.5 + 1 + 0.5) / 6)
    assert metrics["train/ratio_max"] == pytest.approx(1.5)
    assert metrics["train/clip_fraction_high"] == pytest.approx(1 / 6)
    assert metrics["train/clip_fraction_low"] == pytest.approx(1 / 6)
    assert metrics["train/approx_kl"] == pytest.approx((0.5 - math.log(1.5) - 0.5 + math.log(2)) / 6)


def test_a_batch_without_response_tokens_adds_nothing() -> None:
    statistics = StepStatistics()
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    statistics.add_policy(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), nothing)
    metrics = statistics.metrics(1)
    assert metrics["train/entropy"] == 0.0
    assert "train/sampler_gap_max" not in metrics


def test_throughput_by_hand() -> None:
    seconds = {"time/step": 4.0, "time/generate": 2.0, "time/update": 1.0}
    rates = throughput({**seconds, "train/tokens": 8.0, "train/tokens_sampled": 12.0}, epochs=2)
    assert rates == {
        "time/tokens_per_second": 2.0,
        "time/generate_tokens_per_second": 6.0,
        "time/update_tokens_per_second": 16.0,
    }


def test_peak_memory_never_falls() -> None:
    before = peak_memory_gb(torch.device("cpu"))
    block = torch.ones(60_000_000)
    after = peak_memory_gb(torch.device("cpu"))
    del block
    assert 0.05 < before <= after <= peak_memory_gb(torch.device("cpu"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**OFF_POLICY, "kl_coefficient": 0.1, "importance_cap": 2.0},
        {"dynamic_sampling_rounds": 1, "overlong_buffer": 2},
    ],
)
def test_a_real_run_emits_every_metric_every_step(changes: dict[str, Any]):
    run = run_grpo(tiny_model(TOKENIZER), n_grpo_steps=2, **changes)
    optional = {"train/importance_capped", "train/kl_reference"} if "importance_cap" in changes else set()
    for _, metrics in run.points:
        assert ALWAYS.keys() | optional <= metrics.keys()
        assert metrics.keys() <= ALWAYS.keys() | SOMETIMES.keys()
        assert {name for name in metrics if name.startswith("train/sampler_")} == {
            name for name in SOMETIMES if name.startswith("train/sampler_")
        }
        assert all(value == value for value in metrics.values())
        assert metrics["memory/peak_gb"] > 0.05
        assert metrics["time/step"] >= metrics["time/generate"] + metrics["time/update"]
