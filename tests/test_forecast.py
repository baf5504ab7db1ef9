"""How long a stage may take: by its like, or by arithmetic done here again by hand."""

from typing import Any

import pytest

from alignment_core.config import SamplingConfig
from alignment_core.forecast import Forecast, Like, Work, forecast, split_sizes, work
from alignment_core.stage_config import GRPOStage, SampleStage, SFTStage
from alignment_core.training_config import GRPOConfig, SFTConfig

SAMPLING = SamplingConfig(max_tokens=1000, batch_size=100)
LARGE = 1_500_000_000
SPLITS = {"train": 7_000, "dev": 1_024, "test": 5_000}


def sample(limit: int) -> dict[str, Any]:
    return SampleStage(sampling=SAMPLING, split="test", limit=limit, seed=0).model_dump(mode="json")


def sft(**more: Any) -> dict[str, Any]:
    return SFTStage(sft=SFTConfig(**more), sampling=SAMPLING, size=128, seed=0).model_dump(mode="json")


def grpo(steps: int, **more: Any) -> dict[str, Any]:
    settings = GRPOConfig(n_grpo_steps=steps, rollout_batch_size=200, train_batch_size=200, **more)
    return GRPOStage(grpo=settings, sampling=SAMPLING, seed=0).model_dump(mode="json")


def took(seconds: float, settings: dict[str, Any], updates: float | None = None, parameters: int = 1000) -> Like:
    """Such a stage, computed here."""
    return Like(settings=settings, parameters=parameters, splits=SPLITS, seconds=seconds, updates=updates)


def measured(stage: str, settings: dict[str, Any], alike: Like) -> float:
    found = forecast(stage, settings, 1000, SPLITS, alike)
    assert found is not None
    assert found.source == "measured"
    return found.seconds


def test_work_counts_rollouts_validation_and_updates() -> None:
    # Points of the curve at steps 0, 4, 8 and 10, of all 1,024 dev problems or fewer; two passes over each rollout.
    options = {"epochs_per_rollout_batch": 2, "loss_type": "grpo_clip", "validate_every": 4}
    settings = grpo(10, validation_problems=2_000, **options)
    assert work("grpo", settings, SPLITS) == Work(10 * 200 + 4 * 1_024, 2 * 10 * 200)
    assert work("grpo", grpo(10, validation_problems=100, **options), SPLITS) == Work(2_000 + 400, 4_000)
    assert work("grpo", grpo(10, validation_problems=0, **options), SPLITS) == Work(2_000, 4_000)
    # 128 examples in batches of 16, twice: 16 steps, with points at 0, 6, 12 and 16.
    assert work("sft", sft(epochs=2, validate_every=6, validation_problems=50), SPLITS) == Work(4 * 50, 256)
    whole = SampleStage(sampling=SAMPLING, split="dev", samples_per_problem=4, seed=0).model_dump(mode="json")
    assert work("sample", whole, SPLITS) == Work(4 * 1_024, 0)


def test_a_stage_takes_as_long_as_its_like_for_as_much_work() -> None:
    assert measured("sample", sample(300), took(20.0, sample(100))) == 60.0
    assert measured("pretrain", {}, took(7.0, {})) == 7.0
    # No record of the updates: 2 x 100 + 1,000 responses sampled and 1,000 trained, then 2 x 100 + 2,000 and 2,000.
    settings = {"validation_problems": 100}
    assert measured("grpo", grpo(10, **settings), took(55.0, grpo(5, **settings))) == pytest.approx(55 * 4_200 / 2_200)


def test_updates_and_sampling_are_scaled_by_themselves() -> None:
    # Of 100 s 30 went into one pass over each rollout: four passes take 120 s, and sampling its 70 s as before.
    swept = grpo(10, epochs_per_rollout_batch=4, loss_type="grpo_clip")
    assert measured("grpo", swept, took(100.0, grpo(10), updates=30.0)) == 4 * 30 + 70
    # 200 s without updates for 10 x 200 rollouts and 2 x 1,000 dev problems: points at every step make it 11 x 1,000.
    before, now = grpo(10, validation_problems=1_000), grpo(10, validation_problems=1_000, validate_every=1)
    assert measured("grpo", now, took(230.0, before, updates=30.0)) == pytest.approx(30 + 200 * 13_000 / 4_000)


def test_a_time_budget_bounds_a_measured_forecast_too() -> None:
    assert measured("grpo", grpo(10, time_budget_hours=0.01), took(100.0, grpo(10))) == 36.0


def test_nothing_is_said_of_a_small_model_without_its_like() -> None:
    assert forecast("sample", sample(300), 1000, SPLITS, None) is None
    assert forecast("sample", sample(300), 1000, SPLITS, took(20.0, sample(100), parameters=2000)) is None
    assert forecast("sample", sample(300), None, SPLITS, None) is None


def test_arithmetic_of_one_gpu() -> None:
    sampled = forecast("sample", sample(250), LARGE, SPLITS, None)
    assert sampled == Forecast(seconds=3 * 1000 * 0.006, source="arithmetic")
    # Per step 2 batches of 100; 2 points of 1,000 problems, 10 batches each; 2 passes over 2,000 rollouts.
    settings = grpo(10, validation_problems=1_000, epochs_per_rollout_batch=2, loss_type="grpo_clip")
    trained = forecast("grpo", settings, LARGE, SPLITS, None)
    assert trained is not None
    update = 6 * LARGE * 550 * 2 * 2_000 / (0.4 * 990e12)
    assert trained.seconds == pytest.approx(update + (10 * 2 + 2 * 10) * 1000 * 0.006)
    short = forecast("grpo", grpo(10, time_budget_hours=0.01), LARGE, SPLITS, None)
    assert short == Forecast(seconds=36.0, source="arithmetic")
    # 16 steps: points at 0 and 16, of one batch.
    tuned = forecast("sft", sft(epochs=2, validation_problems=100), LARGE, SPLITS, None)
    assert tuned is not None
    assert tuned.seconds == pytest.approx(6 * LARGE * 550 * 256 / (0.4 * 990e12) + 2 * 1000 * 0.006)


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        ({"kind": "math", "train": "a/b", "test": "a/b", "dev_size": 1_024}, (6_476, 1_024, 5_000)),
        ({"kind": "gsm8k", "train": "a/b", "test": "a/b", "dev_size": 1_024}, (6_449, 1_024, 1_319)),
        ({"kind": "gsm8k", "train": "a/b", "test": "a/b", "limit_train": 512, "limit_test": 200}, (512, 500, 200)),
        ({"kind": "math", "train": "a/b", "split": "resplit", "resplit_sizes": (9, 8, 7)}, (9, 8, 7)),
        ({"kind": "countdown", "countdown_size": 1_000, "dev_size": 50}, (700, 50, 250)),
        ({"kind": "arithmetic", "arithmetic": {"train": 256, "dev": 48, "test": 100}}, (256, 48, 100)),
    ],
)
def test_split_sizes_are_those_of_the_settings(data: dict[str, Any], sizes: tuple[int, int, int]) -> None:
    assert tuple(split_sizes(data).values()) == sizes
