"""Short names of settings: what they stand for in which flow, and what is said where that is not clear."""

import pytest

from alignment_core.study_config import StudyConfig
from flows.settings import SHORT_NAMES, _all_names, full_name, load_config


@pytest.mark.parametrize(
    ("name", "flow", "full"),
    [
        ("lr", "grpo", "grpo.optimizer.learning_rate"),
        ("lr", "sft", "sft.optimizer.learning_rate"),
        ("lr", "expert-iteration", "expert_iteration.sft.optimizer.learning_rate"),
        ("lr", "expert_iteration", "expert_iteration.sft.optimizer.learning_rate"),
        ("grpo.lr", "study", "grpo.optimizer.learning_rate"),
        ("expert_iteration.sft.lr", "study", "expert_iteration.sft.optimizer.learning_rate"),
        ("steps", "grpo", "grpo.n_grpo_steps"),
        ("limit", "study", "evaluation.limit"),
        ("seed", "grpo", "seed"),
        ("grpo.group_size", "study", "grpo.group_size"),
        ("sampling.steps", "grpo", "sampling.steps"),
    ],
)
def test_a_short_name_means_the_flow_s_own_method(name: str, flow: str, full: str) -> None:
    assert full_name(name, flow) == full


def test_a_short_name_that_may_mean_several_lists_them() -> None:
    with pytest.raises(ValueError, match=r"lr may mean sft\.optimizer\.learning_rate, expert_iteration\.") as caught:
        load_config("smoke", {"lr": 2e-5})
    assert "give one of these in full" in str(caught.value)


def test_what_the_readme_says_works() -> None:
    config = load_config("gsm8k-1.5b", {"lr": 2e-5}, "grpo")
    assert config.grpo is not None
    assert config.grpo.optimizer.learning_rate == 2e-5
    assert config.sft.optimizer.learning_rate == load_config("gsm8k-1.5b").sft.optimizer.learning_rate


def test_every_short_name_stands_for_settings_that_exist() -> None:
    known = set(_all_names(StudyConfig))
    assert {full for meant in SHORT_NAMES.values() for full in meant} <= known
    assert not set(SHORT_NAMES) & set(StudyConfig.model_fields)
