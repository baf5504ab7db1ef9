"""Members of experiments: what each is called, what it computes, and what cannot be."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.experiments import assign, carried_settings, contrasts, members_of, selected, variations, waves
from alignment_core.study_config import ExperimentConfig, StudyConfig
from flows.settings import load_config

GROUP = "grpo.group_size"
RATE = "grpo.optimizer.learning_rate"
OFF_POLICY = {"grpo.loss_type": "grpo_clip", "grpo.epochs_per_rollout_batch": 2}


def study(*experiments: dict[str, Any], **more: Any) -> StudyConfig:
    """The tiny study with other experiments."""
    return load_config("tiny", {"experiments": list(experiments), **more})


def groups(config: StudyConfig, number: int = 0) -> list[str]:
    """What the members of an experiment are called."""
    return [one.group for one in variations(config.experiments[number])]


def test_members_are_every_combination_in_the_order_listed() -> None:
    config = study(
        {
            "name": "grpo",
            "method": "grpo",
            "members": {"on": {}, "off": {"grpo.epochs_per_rollout_batch": 2, "grpo.loss_type": "grpo_clip"}},
            "grid": {RATE: [1e-5, 2e-4], "grpo.use_std_normalization": [True, False]},
        },
        seeds=[3, 5],
    )
    assert groups(config) == [
        f"grpo/{own}/{rate}/{std}" for own in ("on", "off") for rate in ("1e-05", "0.0002") for std in ("true", "false")
    ]
    members = members_of(config, config.experiments[0], {})
    assert [one.name for one in members[:3]] == [
        "grpo/on/1e-05/true/seed3",
        "grpo/on/1e-05/true/seed5",
        "grpo/on/1e-05/false/seed3",
    ]
    last = members[-1]
    assert last.seed == 5
    assert last.config.grpo.epochs_per_rollout_batch == 2
    assert last.config.grpo.optimizer.learning_rate == 2e-4
    assert not last.config.grpo.use_std_normalization
    assert last.varied[RATE] == 2e-4
    assert last.config.experiments == ()


def test_a_member_has_the_settings_of_the_study_where_it_says_nothing() -> None:
    config = study({"name": "x", "method": "grpo"}, **{"grpo.n_grpo_steps": 7})
    (member,) = members_of(config, config.experiments[0], {})
    assert member.config == config.model_copy(update={"experiments": ()})


def test_an_experiment_starts_from_and_carries_a_winner() -> None:
    config = study(
        {
            "name": "lr",
            "method": "grpo",
            "grid": {RATE: [1e-5, 3e-5]},
            "choice": {},
            "settings": {"grpo.group_size": 4},
        },
        {"name": "std", "method": "grpo", "carry": ["lr"], "members": {"none": {"grpo.use_std_normalization": False}}},
        {"name": "more", "method": "grpo", "start": "lr"},
    )
    lr, std, more = config.experiments
    won = {"lr": variations(lr)[1]}
    (member,) = members_of(config, std, won, carried_settings(config, std, won))
    assert member.config.grpo.optimizer.learning_rate == 3e-5
    assert member.config.grpo.group_size == 4
    assert not member.config.grpo.use_std_normalization
    assert member.start == "base"
    assert members_of(config, more, won)[0].start == "lr/3e-05"
    assert [[one.name for one in wave] for wave in waves(config.experiments)] == [["lr"], ["std", "more"]]


def test_a_teacher_of_the_study_is_trained_before_who_learns_from_it() -> None:
    distilled = {"examples.variant": "distilled"}
    config = study(
        {"name": "pupil/first", "method": "sft"},
        {"name": "teacher", "method": "grpo", "grid": {RATE: [1e-5, 3e-5]}, "choice": {}},
        {"name": "pupil/second", "method": "sft", "teacher": "teacher", "settings": distilled},
        only=["pupil/second"],
    )
    assert [[one.name for one in wave] for wave in waves(config.experiments)] == [
        ["pupil/first", "teacher"],
        ["pupil/second"],
    ]
    assert [one.name for one in selected(config)] == ["teacher", "pupil/second"]
    won = {"teacher": variations(config.experiments[1])[1]}
    (pupil,) = members_of(config, config.experiments[2], won)
    assert (pupil.start, pupil.teacher) == ("base", "teacher/3e-05")


def test_members_are_compared_with_the_first_and_with_those_they_are_set_against() -> None:
    config = study(
        {"name": "lr", "method": "grpo", "grid": {RATE: [1e-5, 3e-5]}, "choice": {}},
        {"name": "more", "method": "grpo", "grid": {GROUP: [4, 8]}, "against": ["lr", "lr/1e-05"]},
    )
    won = {"lr": variations(config.experiments[0])[1]}
    assert contrasts(config, won) == [
        ("lr/3e-05", "lr/1e-05"),
        ("more/8", "more/4"),
        ("more/4", "lr/3e-05"),
        ("more/4", "lr/1e-05"),
        ("more/8", "lr/3e-05"),
        ("more/8", "lr/1e-05"),
    ]


def test_only_takes_what_the_named_ones_start_from_along() -> None:
    config = load_config("tiny", {"only": ["grpo/sft"]})
    assert [one.name for one in selected(config)] == ["sft", "grpo/sft"]
    assert [one.name for one in selected(load_config("tiny", {"only": ["grpo"]}))] == ["sft", "grpo/base", "grpo/sft"]
    assert [one.name for one in selected(load_config("tiny"), "expert_iteration")] == ["ei/base"]
    assert selected(load_config("tiny")) == load_config("tiny").experiments


@pytest.mark.parametrize(
    ("experiments", "words"),
    [
        (
            [{"name": "x", "method": "grpo", "grid": {"grpo.lerning_rate": [1]}}],
            "'x': grpo.lerning_rate: no such",
        ),
        ([{"name": "x", "method": "grpo", "grid": {RATE: []}}], f"no value for {RATE}"),
        ([{"name": "x", "method": "grpo", "grid": {RATE: [1e-5, "fast"]}}], f"{RATE} should be a number, not 'fast'"),
        ([{"name": "x", "method": "grpo", "start": "y"}], "starts from 'y', which is neither 'base'"),
        (
            [{"name": "x", "method": "grpo"}, {"name": "x", "method": "grpo"}],
            "two members of the experiments are",
        ),
        ([{"name": "x", "method": "grpo", "grid": {RATE: [1e-5, 1e-5]}}], "two members of the experiments are"),
        (
            [{"name": "x", "method": "grpo", "carry": ["y"]}],
            "carries 'y', which is no earlier experiment",
        ),
        ([{"name": "../x", "method": "grpo"}], "cannot name an experiment"),
        ([{"name": "x", "method": "ppo"}], "experiments.0.method should be 'evaluate'"),
        (
            [{"name": "x", "method": "sft", "seeds": [1]}, {"name": "y", "method": "grpo", "start": "x", "seeds": [2]}],
            "starts from 'x', which has no seed 2",
        ),
        ([{"name": "x", "method": "sft", "against": ["y"]}], "is compared with 'y', which is neither 'base'"),
        ([{"name": "x", "method": "sft", "teacher": "y"}], "learns from the teacher 'y', which is neither 'base'"),
        ([{"name": "x", "method": "sft", "settings": {"examples.variant": "distilled"}}], "give distillation.teacher"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(experiments: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=r"preset|experiment|members|name") as caught:
        study(*experiments)
    assert words in str(caught.value)


def test_only_names_what_there_is() -> None:
    with pytest.raises(ValueError, match="no experiment is called 'dpo': there are sft"):
        load_config("tiny", {"only": ["dpo"]})


@given(st.dictionaries(st.sampled_from(["a", "a.b", "a.c", "d"]), st.integers(), max_size=4))
def test_assigned_names_are_found_again(layer: dict[str, int]) -> None:
    settings: dict[str, Any] = {}
    for name, value in layer.items():
        assign(settings, name, value)
    if layer:
        *path, last = list(layer)[-1].split(".")
        found: Any = settings
        for part in path:
            found = found[part]
        assert found[last] == list(layer.values())[-1]


def test_an_experiment_without_anything_to_vary_is_one_member() -> None:
    assert [one.group for one in variations(ExperimentConfig(name="grpo/base", method="grpo"))] == ["grpo/base"]


@pytest.mark.parametrize(
    ("method", "settings", "grid"),
    [
        ("grpo", {"grpo.loss_type": "no_baseline"}, {"grpo.use_std_normalization": [True, False]}),
        ("grpo", {"grpo.use_std_normalization": False}, {"grpo.advantage_eps": [1e-6, 1e-3]}),
        ("grpo", {}, {"grpo.cliprange": [0.1, 0.2]}),
        (
            "grpo",
            {**OFF_POLICY, "grpo.clip_low": 0.2, "grpo.clip_high": 0.3},
            {"grpo.cliprange": [0.1, 0.2]},
        ),
        ("grpo", {"grpo.loss_type": "grpo_clip"}, {"grpo.clip_high": [0.2, 0.28]}),
        ("grpo", {}, {"grpo.overlong_penalty": [0.5, 1.0]}),
        ("grpo", {}, {"sft.epochs": [1, 2]}),
        ("grpo", {}, {"sampling.batch_size": [32, 64]}),
        ("sft", {}, {GROUP: [4, 8]}),
        ("expert_iteration", {}, {"sft.epochs": [1, 2]}),
        ("sft", {"examples.variant": "filtered"}, {"distillation.samples_per_problem": [1, 2]}),
        ("sft", {}, {"plain_prompt": ["plain", None]}),
        ("evaluate", {}, {RATE: [1e-5, 2e-5]}),
    ],
)
def test_members_that_would_differ_in_name_alone_are_refused(
    method: str, settings: dict[str, Any], grid: dict[str, Any]
) -> None:
    (name,) = grid
    with pytest.raises(ValueError, match=f"x/.* and x/.* would compute the same: {name} changes nothing there"):
        study({"name": "x", "method": method, "settings": settings, "grid": grid})


def test_members_without_a_difference_are_refused() -> None:
    with pytest.raises(ValueError, match="x/a and x/b would compute the same: they have the same settings"):
        study({"name": "x", "method": "grpo", "members": {"a": {}, "b": {}}})


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({}, {"grpo.use_std_normalization": [True, False]}),
        ({}, {"grpo.advantage_eps": [1e-6, 1e-3]}),
        ({**OFF_POLICY}, {"grpo.cliprange": [0.1, 0.2]}),
        ({**OFF_POLICY, "grpo.clip_low": 0.2}, {"grpo.cliprange": [0.1, 0.2]}),
        ({"grpo.overlong_buffer": 4}, {"grpo.overlong_penalty": [0.5, 1.0]}),
    ],
)
def test_members_whose_settings_count_are_not(settings: dict[str, Any], grid: dict[str, Any]) -> None:
    study({"name": "x", "method": "grpo", "settings": settings, "grid": grid})


def test_a_winner_that_would_leave_an_experiment_nothing_to_compare_is_seen_before_anything_runs() -> None:
    loss = {
        "name": "loss",
        "method": "grpo",
        "choice": {},
        "grid": {"grpo.loss_type": ["reinforce_with_baseline", "no_baseline"]},
    }
    std = {"name": "std", "method": "grpo", "carry": ["loss"], "grid": {"grpo.use_std_normalization": [True, False]}}
    with pytest.raises(ValueError, match=r"would compute the same: .*std.* \(carrying loss/no_baseline\)"):
        study(loss, std)
    off = {"name": "off", "method": "grpo", "carry": ["loss"], "settings": {"grpo.epochs_per_rollout_batch": 2}}
    loss["grid"] = {"grpo.loss_type": ["grpo_clip", "reinforce_with_baseline"]}
    with pytest.raises(ValueError, match="off-policy"):
        study(loss, off)


@pytest.mark.parametrize("scale", ["smoke", "tiny", "gsm8k-1.5b"])
def test_every_way_the_chain_may_go_can_be_gone(scale: str) -> None:
    config = load_config(f"{scale}/carry-the-winner", {})
    chosen = [one for one in config.experiments if one.choice is not None]
    ways = list(product(*map(variations, chosen)))
    assert len(ways) >= 2
    for way in ways:
        winners = dict(zip((one.name for one in chosen), way, strict=True))
        for experiment in config.experiments:
            assert members_of(config, experiment, winners, carried_settings(config, experiment, winners))
