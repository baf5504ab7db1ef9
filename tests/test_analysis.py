"""Verdicts, gain splits and seed averages on worked examples: pytest tests/test_analysis.py"""

import pytest
from coded_outcomes import outcomes_of, report_of
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.analysis import Analysis, analyze, group_name
from alignment_core.comparisons import verdict
from alignment_core.stage_config import Comparison
from alignment_core.statistics import mcnemar_exact, wilson_interval


def _analyze(evaluations: list[Comparison], codes: dict[str, str]) -> Analysis:
    outcomes = {name: outcomes_of(text) for name, text in codes.items()}
    return analyze(evaluations, {name: report_of(item) for name, item in outcomes.items()}, outcomes, resamples=2000)


ZERO = Comparison(name="zero-shot", method="zero-shot")
SFT = Comparison(name="sft/seed0", method="sft", start="zero-shot", seed=0, size=128, variant="raw")
GRPO = Comparison(name="grpo/seed0", method="grpo", start="sft/seed0", seed=0)


def test_each_run_meets_its_start_and_the_baseline_once() -> None:
    result = _analyze([ZERO, SFT, GRPO], {"zero-shot": "u" * 20, "sft/seed0": "c" * 20, "grpo/seed0": "c" * 20})
    assert [(c.name, c.against, c.relations) for c in result.comparisons] == [
        ("sft/seed0", "zero-shot", ["start", "zero-shot"]),
        ("grpo/seed0", "sft/seed0", ["start"]),
        ("grpo/seed0", "zero-shot", ["zero-shot"]),
    ]


def test_a_comparison_by_hand() -> None:
    result = _analyze([ZERO, SFT], {"zero-shot": "cc" + "u" * 18, "sft/seed0": "cu" + "c" * 12 + "w" * 6})
    (comparison,) = result.comparisons
    assert (comparison.both, comparison.only_name, comparison.only_against, comparison.neither) == (1, 12, 1, 6)
    assert comparison.difference == pytest.approx(11 / 20)
    assert comparison.p_value == mcnemar_exact(12, 1) == comparison.p_holm
    assert 0 < comparison.low < 11 / 20 < comparison.high
    assert comparison.verdict == "better"


def test_worse_is_said_as_plainly_as_better() -> None:
    result = _analyze([ZERO, SFT], {"zero-shot": "c" * 20, "sft/seed0": "c" * 8 + "w" * 12})
    assert result.comparisons[0].verdict == "worse"


def test_a_higher_point_estimate_alone_proves_nothing() -> None:
    result = _analyze([ZERO, SFT], {"zero-shot": "c" * 10 + "w" * 10, "sft/seed0": "c" * 13 + "w" * 7})
    assert result.comparisons[0].difference == pytest.approx(0.15)
    assert result.comparisons[0].verdict == "cannot tell"


def test_equal_runs_cannot_be_told_apart() -> None:
    result = _analyze([ZERO, SFT], {"zero-shot": "cw" * 10, "sft/seed0": "cw" * 10})
    comparison = result.comparisons[0]
    assert (comparison.difference, comparison.p_value, comparison.verdict) == (0, 1, "cannot tell")


def test_many_comparisons_need_stronger_evidence() -> None:
    # Alone p = 2 * (1/2)^6 = 0.03125 rejects; as one of three it does not.
    alone = _analyze([ZERO, SFT], {"zero-shot": "w" * 20, "sft/seed0": "c" * 6 + "w" * 14})
    others = [SFT.model_copy(update={"name": f"sft/{i}/seed0"}) for i in range(3)]
    codes = {"zero-shot": "w" * 20} | {f"sft/{i}/seed0": "c" * 6 + "w" * 14 for i in range(3)}
    together = _analyze([ZERO, *others], codes)
    assert alone.comparisons[0].p_holm == 0.03125
    assert alone.comparisons[0].verdict == "better"
    assert [c.p_holm for c in together.comparisons] == [0.09375] * 3
    assert {c.verdict for c in together.comparisons} == {"cannot tell"}


def test_rounds_before_the_last_are_exploratory_and_cost_no_power() -> None:
    # The last round alone is p = 2 * (1/2)^6 = 0.03125; with four rounds before it corrected too, 0.156.
    names = [*(f"ei/base/seed0/round-{i:02d}" for i in range(1, 5)), "ei/base/seed0"]
    runs = [Comparison(name=name, method="ei", start="zero-shot", seed=0, step=i) for i, name in enumerate(names, 1)]
    result = _analyze([ZERO, *runs], {"zero-shot": "w" * 20} | {name: "c" * 6 + "w" * 14 for name in names})
    *rounds, last = result.comparisons
    assert (last.name, last.p_holm, last.verdict) == ("ei/base/seed0", 0.03125, "better")
    assert [(c.p_value, c.p_holm, c.verdict) for c in rounds] == [(0.03125, None, "exploratory")] * 4


@pytest.mark.parametrize(
    ("p_value", "low", "high", "expected"),
    [
        (0.01, 0.1, 0.3, "better"),
        (0.01, -0.3, -0.1, "worse"),
        (0.01, 0.0, 0.3, "cannot tell"),
        (0.2, 0.1, 0.3, "cannot tell"),
        (0.05, 0.1, 0.3, "cannot tell"),
    ],
)
def test_a_verdict_needs_both_test_and_interval(p_value: float, low: float, high: float, expected: str) -> None:
    assert verdict(p_value, low, high) == expected


# Gains


def test_a_gain_splits_by_hand() -> None:
    # f0 = 4/10, a0 = 1/2 (accuracy 0.2) to f1 = 8/10, a1 = 3/4 (accuracy 0.6):
    # format (0.8 - 0.4) * 0.625 = 0.25, reasoning (0.75 - 0.5) * 0.6 = 0.15
    result = _analyze([ZERO, SFT], {"zero-shot": "ccww" + "u" * 6, "sft/seed0": "ccwcccc" + "wuu"})
    (gain,) = result.gains
    assert gain.gain == pytest.approx(0.4)
    assert (gain.format_part, gain.reasoning_part) == pytest.approx((0.25, 0.15))
    assert (gain.won_unformatted, gain.won_wrong, gain.lost) == (3, 1, 0)


def test_pure_format_and_pure_reasoning_are_recognised() -> None:
    formats = _analyze([ZERO, SFT], {"zero-shot": "cw" + "u" * 8, "sft/seed0": "cw" * 5}).gains[0]
    assert (formats.format_part, formats.reasoning_part) == pytest.approx((0.4, 0.0))
    reasons = _analyze([ZERO, SFT], {"zero-shot": "c" + "w" * 9, "sft/seed0": "c" * 9 + "w"}).gains[0]
    assert (reasons.format_part, reasons.reasoning_part) == pytest.approx((0.0, 0.8))


@pytest.mark.parametrize("start", ["u" * 10, "cx" + "u" * 8])
def test_no_split_is_made_up_where_none_exists(start: str) -> None:
    gain = _analyze([ZERO, SFT], {"zero-shot": start, "sft/seed0": "c" * 10}).gains[0]
    assert (gain.format_part, gain.reasoning_part) == (None, None)
    assert gain.gain > 0


@given(st.text("cwu", min_size=12, max_size=12), st.text("cwu", min_size=12, max_size=12))
def test_parts_add_up_to_the_gain(before: str, after: str) -> None:
    gain = _analyze([ZERO, SFT], {"zero-shot": before, "sft/seed0": after}).gains[0]
    if gain.format_part is not None and gain.reasoning_part is not None:
        assert gain.format_part + gain.reasoning_part == pytest.approx(gain.gain)
    assert gain.won_unformatted + gain.won_wrong - gain.lost == pytest.approx(12 * gain.gain)


def test_plain_accuracy_is_named_and_has_no_gain_split() -> None:
    plain = Comparison(name="plain", method="plain", start="zero-shot")
    result = _analyze([ZERO, plain], {"zero-shot": "u" * 20, "plain": "c" * 20})
    assert (result.zero_shot, result.plain, result.gains) == (["zero-shot"], ["plain"], [])
    assert len(result.comparisons) == 1


# Rows, seeds, refusals


def test_seeds_of_a_setting_are_averaged() -> None:
    runs = [SFT.model_copy(update={"name": f"sft/128/seed{i}", "seed": i}) for i in range(2)]
    codes = {"zero-shot": "u" * 10, "sft/128/seed0": "c" * 4 + "w" * 6, "sft/128/seed1": "c" * 8 + "u" * 2}
    group = _analyze([ZERO, *runs], codes).groups[1]
    assert (group.group, group.members, group.seeds) == ("sft/128", ["sft/128/seed0", "sft/128/seed1"], [0, 1])
    assert (group.accuracy_mean, group.accuracy_min, group.accuracy_max) == pytest.approx((0.6, 0.4, 0.8))
    assert group.format_rate_mean == pytest.approx(0.9)
    assert (group.size, group.variant) == (128, "raw")


@pytest.mark.parametrize(
    ("name", "seed", "expected"),
    [
        ("sft/512/raw/seed0", 0, "sft/512/raw"),
        ("ei/seed10/round1", 10, "ei/round1"),
        ("ei/seed10/round1", 1, "ei/seed10/round1"),
        ("grpo/base/seed3", None, "grpo/base"),
        ("seed0", 0, "seed0"),
        ("zero-shot", None, "zero-shot"),
    ],
)
def test_a_group_is_the_name_without_its_seed(name: str, seed: int | None, expected: str) -> None:
    assert group_name(name, seed) == expected


def test_the_baseline_of_the_same_seed_is_preferred() -> None:
    zeros = [Comparison(name=f"zero/seed{i}", method="zero-shot", seed=i) for i in range(2)]
    run = Comparison(name="grpo/seed1", method="grpo", seed=1)
    result = _analyze([*zeros, run], {"zero/seed0": "u" * 5, "zero/seed1": "u" * 5, "grpo/seed1": "c" * 5})
    assert [c.against for c in result.comparisons] == ["zero/seed1"]


def test_rows_carry_the_interval_of_the_formatted_accuracy() -> None:
    rows = _analyze([ZERO, SFT], {"zero-shot": "u" * 10, "sft/seed0": "ccw" + "u" * 7}).evaluations
    assert (rows[0].accuracy_formatted_low, rows[0].accuracy_formatted_high) == (None, None)
    assert (rows[1].accuracy_formatted_low, rows[1].accuracy_formatted_high) == wilson_interval(2, 3)


def test_the_record_survives_json_and_repeats() -> None:
    codes = {"zero-shot": "ccwu" * 5, "sft/seed0": "cccw" * 5}
    result = _analyze([ZERO, SFT], codes)
    assert Analysis.model_validate_json(result.model_dump_json()) == result == _analyze([ZERO, SFT], codes)


def test_runs_over_different_problems_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"'sft/seed0' and 'zero-shot' are over different problems \(1 only in"):
        _analyze([ZERO, SFT], {"zero-shot": "u" * 10, "sft/seed0": "c" * 11})


def test_names_must_be_unique_and_known() -> None:
    with pytest.raises(ValueError, match="two evaluations are called 'zero-shot'"):
        _analyze([ZERO, ZERO], {"zero-shot": "u"})
    with pytest.raises(ValueError, match="'sft/seed0' has no report"):
        _analyze([ZERO, SFT], {"zero-shot": "u"})
    with pytest.raises(ValueError, match="starts from 'zero-shot', which is not"):
        _analyze([SFT], {"sft/seed0": "u"})


def test_outcomes_that_contradict_the_report_are_refused() -> None:
    outcomes = outcomes_of("cw")
    with pytest.raises(ValueError, match="counts 2 correct, its outcomes 1"):
        analyze([ZERO], {"zero-shot": report_of(outcomes, n_correct=2)}, {"zero-shot": outcomes})


# Numbers that are none


def test_nan_metrics_are_refused() -> None:
    outcomes = outcomes_of("cw")
    with pytest.raises(ValueError, match="mean_length of 'zero-shot' is nan: evaluate it again"):
        analyze([ZERO], {"zero-shot": report_of(outcomes, mean_length=float("nan"))}, {"zero-shot": outcomes})
    broken = {"p0": (1.0, float("nan")), "p1": (1.0, 0.0)}
    with pytest.raises(ValueError, match=r"'zero-shot' has the outcome \(1.0, nan\) on problem 'p0'"):
        analyze([ZERO], {"zero-shot": report_of(outcomes)}, {"zero-shot": broken})


def test_a_p_value_or_interval_that_is_none_is_no_verdict() -> None:
    nan = float("nan")
    assert verdict(nan, 0.1, 0.2) == verdict(0.01, nan, nan) == "cannot tell"


def test_an_analysis_of_before_still_loads() -> None:
    result = _analyze([ZERO, SFT], {"zero-shot": "cw", "sft/seed0": "cc"})
    old = result.model_dump(exclude={"setting_comparisons": True, "comparisons": {"__all__": {"test"}}})
    for group in old["groups"]:
        for field in ("accuracy_low", "accuracy_high", "seed_sd", "note"):
            del group[field]
    assert Analysis.model_validate(old).comparisons == result.comparisons
