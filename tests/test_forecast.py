"""How long a stage may take: by its like, or by arithmetic done here again by hand."""

from typing import Any

import pytest

from alignment_core.config import SamplingConfig
from alignment_core.forecast import Forecast, forecast, work
from alignment_core.manifest import Components, Manifest, Producer
from alignment_core.stage_config import GRPOStage, SampleStage, SFTStage
from alignment_core.training_config import GRPOConfig, SFTConfig

SAMPLING = SamplingConfig(max_tokens=1000, batch_size=100)
LARGE = 1_500_000_000


def sample(limit: int) -> dict[str, Any]:
    return SampleStage(sampling=SAMPLING, split="test", limit=limit, seed=0).model_dump(mode="json")


def grpo(steps: int, **more: Any) -> dict[str, Any]:
    settings = GRPOConfig(n_grpo_steps=steps, rollout_batch_size=200, train_batch_size=200, **more)
    return GRPOStage(grpo=settings, sampling=SAMPLING, seed=0).model_dump(mode="json")


def took(seconds: float, settings: dict[str, Any]) -> Manifest:
    """An artifact of such a stage."""
    return Manifest(
        stage="x",
        key="k",
        label="x",
        digest="d",
        files={},
        components=Components(stage="x", config={}, inputs={}, code={}, versions={}),
        parents={},
        producer=Producer(started=0, seconds=seconds, host="h"),
        settings=settings,
    )


def test_a_stage_takes_as_long_as_its_like_for_as_much_work() -> None:
    found = forecast("sample", sample(300), 1000, took(20.0, sample(100)), 1000)
    assert found == Forecast(seconds=60.0, source="measured")
    assert forecast("grpo", grpo(10), 1000, took(50.0, grpo(5)), 1000) == Forecast(seconds=100.0, source="measured")
    assert forecast("pretrain", {}, 1000, took(7.0, {}), 1000) == Forecast(seconds=7.0, source="measured")


def test_nothing_is_said_of_a_small_model_without_its_like() -> None:
    assert forecast("sample", sample(300), 1000, None, None) is None
    assert forecast("sample", sample(300), 1000, took(20.0, sample(100)), 2000) is None
    assert forecast("sample", sample(300), None, None, None) is None


def test_arithmetic_of_one_gpu() -> None:
    sampled = forecast("sample", sample(250), LARGE, None, None)
    assert sampled == Forecast(seconds=3 * 1000 * 0.006, source="arithmetic")
    trained = forecast("grpo", grpo(10), LARGE, None, None)
    assert trained is not None
    update = 6 * LARGE * 550 * 10 * 200 / (0.4 * 990e12)
    assert trained.seconds == pytest.approx(update + 10 * 2 * 1000 * 0.006)
    short = forecast("grpo", grpo(10, time_budget_hours=0.01), LARGE, None, None)
    assert short == Forecast(seconds=36.0, source="arithmetic")


def test_work_counts_epochs_of_examples() -> None:
    stage = SFTStage(sft=SFTConfig(epochs=2), sampling=SAMPLING, size=128, seed=0).model_dump(mode="json")
    assert work("sft", stage) == 256
