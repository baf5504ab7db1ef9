"""Settings of the loops: what goes together, and what is refused with cause and remedy."""

from typing import Any

import pytest
from pydantic import ValidationError

from alignment_core.config import ArithmeticConfig, DataConfig, ModelConfig, SamplingConfig, ScratchModelConfig
from alignment_core.study_config import StudyConfig as Study
from alignment_core.training_config import DPOConfig, GRPOConfig

OFF_POLICY = {"epochs_per_rollout_batch": 2, "train_batch_size": 128}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "no_baseline"},
        {"loss_type": "grpo_clip", **OFF_POLICY},
        {"loss_type": "grpo_clip", "clip_low": 0.2, "clip_high": 0.28, "length_normalization": "token_mean"},
        {"loss_type": "grpo_no_clip", **OFF_POLICY, "kl_coefficient": 0.01},
        {"baseline": "leave_one_out", "use_std_normalization": False},
        {"length_normalization": "masked_normalize", "normalize_constant": 512},
        {"length_normalization": "constant", "use_std_normalization": False},
        {"loss_type": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, **OFF_POLICY},
        {"loss_type": "cispo", **OFF_POLICY, "importance_cap": 2},
        {"dynamic_sampling_rounds": 3, "overlong_buffer": 64},
        {"loss_type": "no_baseline", "group_size": 1},
    ],
)
def test_what_goes_together_is_accepted(settings: dict[str, Any]) -> None:
    assert GRPOConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "cause", "remedy"),
    [
        ({"group_size": 7}, "256 is not a multiple of grpo.group_size 7", "take a rollout batch of 252"),
        ({"train_batch_size": 100}, "not a multiple of grpo.train_batch_size", "256 for one update per batch"),
        ({"group_size": 1}, "group_size 1 gives every advantage 0", "take no_baseline or a larger group"),
        (OFF_POLICY, "are off-policy", "take grpo.loss_type grpo_clip or grpo_no_clip"),
        ({"loss_type": "no_baseline", **OFF_POLICY}, "are off-policy", "take grpo.loss_type grpo_clip"),
        ({"clip_high": 0.28}, "reinforce_with_baseline clips none", "leave them out, or take grpo_clip"),
        ({"clip_low": 0.1, "loss_type": "grpo_no_clip"}, "grpo_no_clip clips none", "leave them out"),
        ({"loss_type": "gspo"}, "clips the ratio of whole sequences", "give grpo.clip_low and grpo.clip_high"),
        ({"loss_type": "gspo", "clip_low": 3e-4}, "clips the ratio of whole sequences", "give grpo.clip_low"),
        (
            {"loss_type": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "length_normalization": "token_mean"},
            "weighs sequences alike",
            "set grpo.length_normalization to masked_mean",
        ),
        (
            {"loss_type": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "importance_cap": 2.0},
            "one ratio per sequence",
            "leave it out, or take grpo_clip",
        ),
        ({"baseline": "leave_one_out"}, "is not divided by a standard deviation", "use_std_normalization to false"),
        (
            {"baseline": "leave_one_out", "use_std_normalization": False, "loss_type": "no_baseline"},
            "has no effect on grpo.loss_type no_baseline",
            "take reinforce_with_baseline for RLOO",
        ),
        (
            {"dynamic_sampling_rounds": 1, "loss_type": "no_baseline"},
            "which do teach under no_baseline",
            "set it to 0, or take reinforce_with_baseline",
        ),
        (
            {"length_normalization": "masked_normalize"},
            "needs grpo.normalize_constant",
            "constant divides by sampling.max_tokens",
        ),
        (
            {"normalize_constant": 512},
            "has no effect on grpo.length_normalization masked_mean",
            "leave it out, or take masked_normalize",
        ),
    ],
)
def test_what_is_impossible_is_refused_with_cause_and_remedy(settings: dict[str, Any], cause: str, remedy: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        GRPOConfig(**settings)
    assert cause in str(refusal.value)
    assert remedy in str(refusal.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_coefficient": -0.1},
        {"importance_cap": 0.5},
        {"clip_low": 1.5, "loss_type": "grpo_clip"},
        {"cliprange": 0},
        {"advantage_eps": -1e-6},
        {"normalize_constant": 0, "length_normalization": "masked_normalize"},
        {"loss_type": "ppo"},
        {"length_normalization": "mean"},
        {"use_std_normalisation": True},
    ],
)
def test_values_out_of_range_and_unknown_names_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GRPOConfig(**settings)


def test_the_clip_falls_back_to_cliprange_on_either_side() -> None:
    assert GRPOConfig(loss_type="grpo_clip", cliprange=0.1).clip == (0.1, 0.1)
    assert GRPOConfig(loss_type="grpo_clip", clip_high=0.28).clip == (0.2, 0.28)
    assert GRPOConfig(loss_type="grpo_clip", clip_low=0.3).clip == (0.3, 0.2)


def test_an_overlong_buffer_must_leave_room() -> None:
    model = ModelConfig(scratch=ScratchModelConfig())
    parts: dict[str, Any] = {"name": "s", "model": model, "data": DataConfig(arithmetic=ArithmeticConfig())}
    grpo = GRPOConfig(overlong_buffer=56)
    with pytest.raises(ValidationError, match=r"take less than sampling\.max_tokens, which is 56"):
        Study(**parts, sampling=SamplingConfig(max_tokens=56), grpo=grpo)
    assert Study(**parts, sampling=SamplingConfig(max_tokens=57), grpo=grpo)


@pytest.mark.parametrize(
    "settings", [{"beta": 0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"loss": "ipo"}]
)
def test_dpo_refuses_what_teaches_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DPOConfig(**settings)
