"""`benchmarks.learning` runs, resumes, judges by its stated rule and draws its page, on a model of seconds."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from alignment_core.runs import MemoryRun
from alignment_core.study_config import StudyConfig
from benchmarks import learning
from benchmarks.learning_page import Gain, compared, verdict, write_page
from benchmarks.learning_variants import DPO, MAIN, OFF_POLICY_BATCHES, VARIANTS, chosen, grpo_settings, planned
from benchmarks.learning_work import record
from flows.settings import load_config

TINY: dict[str, Any] = {
    "model.scratch": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "documents": 64},
    "data.arithmetic": {"max_total": 20, "train": 24, "dev": 4, "test": 6},
    "sampling.max_tokens": 12,
    "grpo.rollout_batch_size": 8,
    "grpo.train_batch_size": 8,
    "grpo.group_size": 4,
    "grpo.validate_every": 1,
}


@pytest.fixture
def study() -> StudyConfig:
    return load_config("tiny", TINY)


def options(folder: Path, *variants: str) -> Namespace:
    arguments = ["--out", str(folder / "out" / "learning.json"), "--work", str(folder / "work")]
    arguments += ["--seeds", "0", "--steps", "2", "--validation", "4"]
    return learning.parse_arguments([*arguments, "--variants", ",".join(variants)])


def test_a_run_is_recorded_and_not_run_again(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The base start alone: a model of 64 documents has no use for the SFT one.
    monkeypatch.setattr(learning, "planned", lambda *of: [pair for pair in planned(*of) if pair[0].start == "base"])
    first = options(tmp_path, MAIN)
    trained: list[str] = []
    found = learning.measure(study, first, trained.append)
    run = found["runs"][f"{MAIN}/base/0"]
    assert run["curve"]["step"] == [0, 1, 2]
    assert len(run["curve"]["accuracy"]) == 3
    assert len(run["test"]) == len(found["starts"]["base/0"]["test"]) == 6
    assert json.loads(first.out.read_text()) == found
    again = learning.measure(study, options(tmp_path, MAIN, "no_std"), trained.append)
    assert [line.split()[1] for line in trained] == [f"{MAIN}/base/0:", "no_std/base/0:"]
    assert again["runs"][f"{MAIN}/base/0"] == run
    first.steps = 1
    assert learning.measure(study, first, trained.append)["runs"][f"{MAIN}/base/0"]["curve"]["step"] == [0, 1]
    write_page(found, tmp_path / "page")
    page = tmp_path / "page" / "learning.md"
    page.write_text("Prose before.\n\n" + page.read_text() + "\nProse after.\n")
    write_page(again, tmp_path / "page")
    assert page.read_text().startswith("Prose before.\n\n# Does it learn?")
    assert page.read_text().endswith("\nProse after.\n")
    assert "without std normalisation" in page.read_text()
    assert (tmp_path / "page" / "learning.png").stat().st_size > 10_000


def test_a_record_has_curve_and_steps_apart() -> None:
    run = MemoryRun()
    run.emit(0, {"eval/accuracy": 0.25})
    run.emit(1, {"train/loss": 0.123456, "train/entropy": 2.0, "train/ratio_max": 1.0})
    run.emit(2, {"train/loss": -0.1, "train/entropy": 1.5, "train/ratio_max": 1.0, "eval/accuracy": 0.5})
    found = record(run)
    assert (found["curve"]["step"], found["curve"]["accuracy"]) == ([0, 2], [0.25, 0.5])
    assert found["steps"] == {"entropy": [2.0, 1.5], "loss": [0.1235, -0.1]}, "what never varies is left out"


def test_results_of_another_study_are_refused(study: StudyConfig, tmp_path: Path) -> None:
    learning.keep(tmp_path / "learning.json", learning.opened(tmp_path / "absent.json", study))
    learning.opened(tmp_path / "learning.json", study)
    with pytest.raises(ValueError, match="another study"):
        learning.opened(tmp_path / "learning.json", load_config("tiny"))


def test_the_main_variant_runs_first_then_seed_by_seed() -> None:
    order = [(variant.name, variant.start, seed) for variant, seed in planned([MAIN, "kl", "gspo"], [4, 7])]
    mains = [(MAIN, start, seed) for seed in (4, 7) for start in ("base", "sft")]
    assert order == [*mains, ("gspo", "base", 4), ("kl", "base", 4), ("gspo", "base", 7), ("kl", "base", 7)]


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="no variant 'grpo'"):
        chosen(["grpo"])


@pytest.mark.parametrize("variant", [one for one in VARIANTS if one.name != DPO], ids=lambda one: one.label)
def test_every_variant_has_possible_settings(study: StudyConfig, variant: Any) -> None:
    config = grpo_settings(study, variant, 10, 4)
    assert config.on_policy is not variant.off_policy
    assert config.n_grpo_steps == (10 if variant.name == MAIN else 3 if variant.off_policy else 6)
    assert config.train_batch_size == (8 // OFF_POLICY_BATCHES if variant.off_policy else 8)
    assert config.optimizer.learning_rate == 2e-4


def test_the_gain_is_paired() -> None:
    gain = compared("0012222", "2212200", seed=5)
    assert (gain.right, gain.n, gain.gain) == (4, 7, 0.0)
    assert gain.formatted == pytest.approx(5 / 7)
    assert gain.p == 1.0
    assert compared("0" * 6, "2" * 6, seed=0).p == pytest.approx(2 / 64)


def test_the_verdict_follows_its_rule() -> None:
    up = Gain(0, 60, 100, 1.0, 0.3, (0.2, 0.4), 1e-6)
    level = Gain(1, 30, 100, 1.0, 0.0, (-0.04, 0.04), 1.0)
    unclear = Gain(2, 34, 100, 1.0, 0.04, (-0.03, 0.11), 0.3)
    assert verdict([up, up], [1e-6, 0.049]) == "learns"
    assert verdict([up, up], [1e-6, 0.051]) == "cannot tell"
    assert verdict([level, level], [1.0, 1.0]) == "does not learn"
    assert verdict([level, unclear], [1.0, 1.0]) == "cannot tell"
    assert verdict([up, level], [1e-6, 1.0]) == "cannot tell"
