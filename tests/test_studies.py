"""Every shipped study at every scale: it can be planned, and its members differ in what they compute."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignment_core.planning import Planner
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageSpec
from flows.plan import plan_flow
from flows.presets import preset_names, read_preset, scale_names, study_names, study_questions
from flows.settings import load_config
from flows.study import study

SMALL = [name for name in preset_names() if name.partition("/")[0] in {"smoke", "tiny"}]
LARGE = [name for name in preset_names() if name not in SMALL]
TRAINING = ("sft", "grpo", "dpo")


@pytest.fixture
def considered(monkeypatch: pytest.MonkeyPatch) -> list[StageSpec]:
    """The spec of every stage that is planned from here on."""
    specs: list[StageSpec] = []
    consider = Planner.consider

    def kept(self: Planner, spec: StageSpec) -> ArtifactRef:
        specs.append(spec)
        return consider(self, spec)

    monkeypatch.setattr(Planner, "consider", kept)
    return specs


def computed(spec: StageSpec) -> str:
    """What a stage computes, names of its own left out."""
    inputs = sorted((name, ref.digest) for name, ref in spec.inputs.items())
    return json.dumps([spec.stage, spec.components.config, inputs], sort_keys=True)


@pytest.mark.parametrize("preset", SMALL)
def test_members_differ_in_what_they_compute(preset: str, considered: list[StageSpec], tmp_path: Path) -> None:
    plan = plan_flow(study, str(tmp_path), preset=preset)
    for experiment in load_config(preset).experiments:
        # Members of different experiments may meet in one run: a chain's next link holds the winner of the last.
        own = [spec for spec in considered if spec.label.startswith(f"{experiment.name}/") and spec.stage in TRAINING]
        assert set(Counter(map(computed, own)).values()) <= {1}, "two members would be one run under two labels"
    labels = [spec.label for spec in considered]
    assert len(labels) == len(set(labels)) == len(plan.stages)


@pytest.mark.parametrize(
    ("method", "settings", "grid", "made"),
    [
        ("sft", {}, {"evaluation.reward": ["r1_zero", "number"]}, "filter"),
        ("sft", {"examples.variant": "distilled"}, {"distillation.samples_per_problem": [1, 2]}, "select"),
        ("sft", {"examples.variant": "distilled"}, {"sampling.temperature": [0.7, 1.0]}, "select"),
    ],
)
def test_members_whose_traces_differ_imitate_different_ones(
    method: str,
    settings: dict[str, Any],
    grid: dict[str, Any],
    made: str,
    considered: list[StageSpec],
    tmp_path: Path,
) -> None:
    teacher = {"name": "teacher", "method": "grpo"}
    pupil = {"name": "pupil", "method": method, "settings": settings, "grid": grid, "teacher": "teacher"}
    plan_flow(study, str(tmp_path), preset="tiny", overrides={"experiments": [teacher, pupil]})
    own = [spec for spec in considered if spec.stage == made]
    assert len({computed(spec) for spec in own}) == len({spec.label for spec in own}) == 2
    tuned = [spec for spec in considered if spec.stage == "sft"]
    assert len({spec.inputs["examples"].digest for spec in tuned}) == 2


@pytest.mark.parametrize("preset", LARGE)
def test_every_study_has_settings_that_hold_at_the_large_scales(preset: str) -> None:
    config = load_config(preset)
    assert config.question or "/" not in preset
    assert config.experiments


def test_the_base_model_is_evaluated_once(considered: list[StageSpec], tmp_path: Path) -> None:
    plan_flow(study, str(tmp_path), preset="tiny/expert-iteration")
    of_base = [one.label for one in considered if one.stage == "sample" and "base model" in one.inputs["model"].digest]
    tested = [label for label in of_base if label.endswith("sample test")]
    assert tested == ["zero-shot: sample test", "plain: sample test"]


def test_a_budget_is_for_training_and_all_that_is_evaluated_then(considered: list[StageSpec], tmp_path: Path) -> None:
    plan_flow(study, str(tmp_path), preset="tiny/leaderboard", overrides={"evaluation.samples_per_problem": 2})
    trained = next(spec for spec in considered if spec.stage == "grpo")
    asked = next(spec for spec in considered if spec.stage == "sample" and spec.label.startswith("leaderboard"))
    ahead = trained.components.config["ahead"]
    assert trained.components.config["grpo"]["time_budget_hours"] == 0.05
    assert ahead == {"split": "test", "subset": None, "limit": None, "samples_per_problem": 2}
    assert ahead == {name: asked.components.config[name] for name in ahead}
    considered.clear()
    plan_flow(study, str(tmp_path), preset="tiny/grpo-clip")
    assert {str(spec.components.config["ahead"]) for spec in considered if spec.stage == "grpo"} == {"None"}


def test_every_study_asks_something() -> None:
    questions = study_questions()
    assert set(questions) == set(study_names())
    assert all(question.endswith("?") for question in questions.values())


def test_a_file_extends_a_shipped_study(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: tiny/grpo-baselines\nname: mine\ngrpo: {n_grpo_steps: 7}\nseeds: [1, 2]\n")
    config, shipped = load_config(str(own)), load_config("tiny/grpo-baselines")
    assert config == shipped.model_copy(
        update={"name": "mine", "seeds": (1, 2), "grpo": shipped.grpo.model_copy(update={"n_grpo_steps": 7})}
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: nosuch\n", "extends 'nosuch', which is not shipped"),
        ("- 1\n", "is not a YAML mapping"),
        ("a: [\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_study_is_refused(text: str, words: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(ValueError, match=r"preset|YAML") as caught:
        read_preset(str(own))
    assert words in str(caught.value)


@pytest.mark.parametrize(("name", "near"), [("tinny", "tiny"), ("tiny/grpo-baseline", "tiny/grpo-baselines")])
def test_a_near_name_is_offered(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        read_preset(name)


def test_a_scale_alone_is_a_preset_too() -> None:
    settings: dict[str, Any] = read_preset("tiny")
    assert settings["name"] == "tiny"
    assert "tiny" in scale_names()
