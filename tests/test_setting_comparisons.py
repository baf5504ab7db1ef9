"""Settings over their seeds: comparisons, contrasts, and problems sampled several times."""

import pytest
from coded_outcomes import outcomes_of, report_of

from alignment_core.analysis import Analysis, analyze
from alignment_core.seed_statistics import ONE_SEED
from alignment_core.stage_config import Comparison, Contrast
from alignment_core.statistics import mcnemar_exact, wilson_interval

ZERO = Comparison(name="zero-shot", method="zero-shot")
SFT = Comparison(name="sft/seed0", method="sft", start="zero-shot", seed=0, size=128, variant="raw")


def _seeded(setting: str, seeds: int = 3) -> list[Comparison]:
    return [Comparison(name=f"{setting}/seed{i}", method="grpo", start="zero-shot", seed=i) for i in range(seeds)]


def _contrasted(evaluations: list[Comparison], codes: dict[str, str], *contrasts: Contrast) -> Analysis:
    outcomes = {name: outcomes_of(text) for name, text in codes.items()}
    reports = {name: report_of(item) for name, item in outcomes.items()}
    return analyze(evaluations, reports, outcomes, resamples=2000, contrasts=contrasts)


CODES = {"zero-shot": "w" * 40} | {f"grpo/a/seed{i}": "c" * (20 + i) + "w" * (20 - i) for i in range(3)}


def test_a_setting_meets_its_start_over_its_seeds_and_problems() -> None:
    (comparison,) = _contrasted([ZERO, *_seeded("grpo/a")], CODES).setting_comparisons
    assert (comparison.name, comparison.against) == ("grpo/a", "zero-shot")
    assert (comparison.relations, comparison.test) == (["start", "zero-shot"], "seeds_and_problems")
    assert (comparison.seeds, comparison.left_out, comparison.n) == ([0, 1, 2], [], 40)
    assert comparison.difference == pytest.approx(21 / 40)
    assert comparison.seed_sd == pytest.approx(1 / 40)
    assert 0 < comparison.low < 21 / 40 < comparison.high
    assert (comparison.verdict, comparison.note) == ("better", "")


def test_what_the_page_concludes_from_is_corrected_together_and_nothing_else() -> None:
    # Two seeds of a, each of two rounds, one run of b, and a contrast: of 8 comparisons 3 decide.
    rounds = [
        Comparison(name=f"grpo/a/seed{i}/round-01", method="ei", start="zero-shot", seed=i, step=1) for i in range(2)
    ]
    codes = CODES | {one.name: "c" * 30 + "w" * 10 for one in rounds} | {"grpo/b/seed0": "c" * 6 + "w" * 34}
    runs = [ZERO, *_seeded("grpo/a", 2), *rounds, *_seeded("grpo/b", 1)]
    codes = {one.name: codes[one.name] for one in runs}
    result = _contrasted(runs, codes, Contrast(name="grpo/a", against="grpo/b"))
    (alone,) = (c for c in result.comparisons if c.name == "grpo/b/seed0")
    over_seeds, early, contrast = result.setting_comparisons
    assert alone.p_value == 2 * 0.5**6
    assert [c.name for c in (over_seeds, early, contrast)] == ["grpo/a", "grpo/a/round-01", "grpo/a"]
    # Holm by hand: the smallest times 3, the next times 2, the largest times 1 and not below the one before it.
    assert contrast.p_value == 2 * 0.5**14 < over_seeds.p_value < alone.p_value < 2 * over_seeds.p_value
    assert contrast.p_holm == 3 * 2 * 0.5**14
    assert over_seeds.p_holm == alone.p_holm == 2 * over_seeds.p_value
    assert {c.verdict for c in (alone, over_seeds, contrast)} == {"better"}
    exploratory = [c for c in (*result.comparisons, early) if c is not alone]
    assert len(exploratory) == 5
    assert {(c.p_holm, c.verdict) for c in exploratory} == {(None, "exploratory")}
    assert max(c.p_value for c in exploratory) < 1e-3, "a p-value of its own is told all the same"


def test_two_settings_are_contrasted_by_seed_and_problem() -> None:
    codes = CODES | {f"grpo/b/seed{i}": "c" * (2 + i) + "w" * (38 - i) for i in range(3)}
    runs = [ZERO, *_seeded("grpo/a"), *_seeded("grpo/b")]
    result = _contrasted(runs, codes, Contrast(name="grpo/b", against="grpo/a/seed0"))
    contrast = result.setting_comparisons[-1]
    assert (contrast.name, contrast.against, contrast.relations) == ("grpo/b", "grpo/a", ["contrast"])
    assert contrast.difference == pytest.approx(-18 / 40)
    assert (contrast.seed_sd, contrast.verdict) == (pytest.approx(0.0), "worse")


def test_seeds_far_apart_forbid_a_verdict_though_every_run_differs() -> None:
    codes = {"zero-shot": "w" * 40}
    codes |= {f"grpo/a/seed{i}": "c" * right + "w" * (40 - right) for i, right in enumerate((8, 38, 10))}
    result = _contrasted([ZERO, *_seeded("grpo/a")], codes)
    assert max(c.p_value for c in result.comparisons) < 0.01
    assert {c.verdict for c in result.comparisons} == {"exploratory"}
    assert result.setting_comparisons[0].verdict == "cannot tell"


def test_a_contrast_of_one_seed_says_that_seeds_are_unknown() -> None:
    codes = {"zero-shot": "w" * 20, "grpo/a/seed0": "c" * 20, "grpo/b/seed0": "c" * 12 + "w" * 8}
    runs = [ZERO, *_seeded("grpo/a", 1), *_seeded("grpo/b", 1)]
    (contrast,) = _contrasted(runs, codes, Contrast(name="grpo/a", against="grpo/b")).setting_comparisons
    assert (contrast.seeds, contrast.seed_sd, contrast.note, contrast.test) == ([0], None, ONE_SEED, "mcnemar")
    assert contrast.p_value == mcnemar_exact(8, 0)


def test_a_contrast_that_is_a_run_and_its_start_is_one_test() -> None:
    codes = {"zero-shot": "w" * 20, "grpo/a/seed0": "c" * 20, "grpo/b/seed0": "c" * 12 + "w" * 8}
    after = Comparison(name="grpo/b/seed0", method="grpo", start="grpo/a/seed0", seed=0)
    result = _contrasted([ZERO, *_seeded("grpo/a", 1), after], codes, Contrast(name="grpo/b", against="grpo/a"))
    assert result.setting_comparisons == []
    assert [(c.name, c.against) for c in result.comparisons].count(("grpo/b/seed0", "grpo/a/seed0")) == 1


def test_seeds_of_one_side_only_are_left_out_and_told() -> None:
    codes = CODES | {f"grpo/b/seed{i}": "c" * 5 + "w" * 35 for i in range(2)}
    runs = [ZERO, *_seeded("grpo/a"), *_seeded("grpo/b", 2)]
    contrast = _contrasted(runs, codes, Contrast(name="grpo/a", against="grpo/b")).setting_comparisons[-1]
    assert (contrast.seeds, contrast.left_out) == ([0, 1], [2])
    assert "seeds 2 of only one setting are left out" in contrast.note


def test_settings_without_a_common_seed_are_refused() -> None:
    codes = {"zero-shot": "w" * 9, "grpo/a/seed0": "c" * 9, "grpo/b/seed1": "c" * 9}
    other = Comparison(name="grpo/b/seed1", method="grpo", seed=1)
    with pytest.raises(ValueError, match="share no seed"):
        _contrasted([ZERO, *_seeded("grpo/a", 1), other], codes, Contrast(name="grpo/a", against="grpo/b"))


@pytest.mark.parametrize("against", ["grpo/z", "grpo/a/seed1"])
def test_a_contrast_needs_two_settings_of_the_analysis(against: str) -> None:
    with pytest.raises(ValueError, match=r"two different settings of the analysis, among zero-shot, grpo/a"):
        _contrasted([ZERO, *_seeded("grpo/a")], CODES, Contrast(name="grpo/a", against=against))


def test_a_group_has_an_interval_over_seeds_and_problems() -> None:
    groups = _contrasted([ZERO, *_seeded("grpo/a")], CODES).groups
    assert (groups[0].accuracy_low, groups[0].accuracy_high) == wilson_interval(0, 40)
    assert (groups[0].note, groups[0].seed_sd) == (ONE_SEED, None)
    low, high = groups[1].accuracy_low, groups[1].accuracy_high
    assert low is not None
    assert high is not None
    assert low < 21 / 40 < high
    assert (groups[1].note, groups[1].seed_sd) == ("", pytest.approx(1 / 40))


def test_problems_sampled_several_times_are_compared_by_their_shares() -> None:
    outcomes = {"zero-shot": {f"p{i}": (1.0, 0.25) for i in range(20)}}
    outcomes["sft/seed0"] = {f"p{i}": (1.0, 0.5 if i < 15 else 0.25) for i in range(20)}
    reports = {
        name: report_of(outcomes_of("w" * 20), n=80, n_correct=round(80 * sum(c for _, c in item.values()) / 20))
        for name, item in outcomes.items()
    }
    (comparison,) = analyze([ZERO, SFT], reports, outcomes).comparisons
    assert (comparison.test, comparison.only_name, comparison.only_against) == ("sign_flip", 15, 0)
    assert (comparison.both, comparison.neither) == (5, 0)
    assert comparison.difference == pytest.approx(0.1875)
    assert comparison.p_value < 0.001
    assert comparison.verdict == "better"
