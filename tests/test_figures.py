"""Figures: what they show, say and leave out, and the same bytes every time: pytest tests/test_figures.py"""

import re
from typing import Any

import pytest
from invented_study import RATE, analysis_of, curve, grpo_curve, outlines, study, svg_texts, sweep, sweep_runs

from alignment_core.curve_figures import MOST_MEMBERS, ExperimentCurves, experiment_curves
from alignment_core.figures import categories_figure, members_figure, rounds_figure, size_figure
from alignment_core.report_answers import ExperimentAnswer, answers
from alignment_core.report_data import ReportData
from alignment_core.run_curves import chained
from alignment_core.stage_config import Comparison


def by_name(data: ReportData) -> dict[str, ExperimentAnswer]:
    return {answer.outline.name: answer for answer in answers(data)}


def plain_study() -> ReportData:
    return ReportData(title="t", analysis=study())


def curves_of(data: ReportData, name: str) -> ExperimentCurves:
    return experiment_curves(by_name(data)[name], chained(data.curves))


def test_members_stand_one_below_the_other_with_a_dot_per_seed() -> None:
    data = sweep()
    figure = members_figure(by_name(data)["grpo/lr"])
    (panel,) = figure.panels
    assert [text for text in svg_texts(panel) if text in {"2e-5", "0.0002", "0.001 ★"}] == ["2e-5", "0.0002", "0.001 ★"]
    assert panel.count("<circle") == 8
    assert "Accuracy (%)" in svg_texts(panel)
    assert "Dashed: zero-shot" in figure.caption
    assert "★: taken on" in figure.caption
    assert members_figure(by_name(data)["grpo/lr"]) == figure


def test_a_figure_says_where_no_interval_is_known() -> None:
    caption = members_figure(by_name(plain_study())["sft"]).caption
    assert "No interval over seeds was worked out for 128/raw" in caption
    assert members_figure(by_name(sweep())["grpo/never"]).panels == []


def test_size_figure_has_a_line_per_variant() -> None:
    data = sweep()
    figure = size_figure(by_name(data)["sft"])
    assert figure is not None
    assert [entry.label for entry in figure.legend] == ["raw", "filtered"]
    assert {"64", "128", "256", "512", "1,024", "Accuracy (%)"} <= set(svg_texts(figure.panels[0]))
    assert size_figure(by_name(data)["grpo/lr"]) is None
    assert size_figure(by_name(plain_study())["sft"]) is None, "one size is no curve"


def test_rounds_figure_starts_at_the_start_and_shows_entropy() -> None:
    data = plain_study()
    figure = rounds_figure(by_name(data)["ei"], data.analysis)
    assert figure is not None
    accuracy, entropy = (svg_texts(panel) for panel in figure.panels)
    assert {"0", "1", "2", "Accuracy (%)", "Expert Iteration round"} <= set(accuracy)
    assert "Entropy (nats per token)" in entropy
    assert [entry.label for entry in figure.legend] == ["base"]
    assert figure.panels[0].count("<circle") == 3
    assert rounds_figure(by_name(data)["grpo"], data.analysis) is None


def test_categories_figure_shows_the_kinds_that_occur() -> None:
    figure = categories_figure(study())
    assert [entry.label for entry in figure.legend] == ["formatted, right", "formatted, wrong", "unformatted"]
    assert "ei/base/round-01" not in svg_texts(figure.panels[0])
    assert "<title>zero-shot: unformatted 83.3 %</title>" in figure.panels[0]


def test_accuracy_is_drawn_against_steps_time_and_tokens() -> None:
    found = curves_of(sweep(), "grpo/lr")
    (figure,) = found.first
    below = [svg_texts(panel)[-1] for panel in figure.panels]
    assert below == [
        "Training steps",
        "Training time (s), without validation and interruptions",
        "Response tokens trained on",
        "Training steps",
    ]
    assert [entry.label for entry in figure.legend] == ["2e-5", "0.0002", "0.001"]
    # A mean line for each member over a thin one for each of its seeds.
    assert len(re.findall(r'stroke-width="2"', figure.panels[0])) == 3
    assert len(re.findall(r'opacity="0.4"', figure.panels[0])) == 8


def test_every_curve_the_assignment_asks_for_is_there() -> None:
    titles = [svg_texts(panel) for figure in curves_of(sweep(), "grpo/lr").more for panel in figure.panels]
    shown = {text for texts in titles for text in texts if "(" in text}
    assert {
        "Reward, training (mean per response)",
        "Format reward, training (% of responses)",
        "Answer reward, training (% of responses)",
        "Entropy, training (nats per token)",
        "Length, training (tokens)",
        "Length of right responses (tokens)",
        "Length of wrong responses (tokens)",
        "Cut off at the token limit (% of responses)",
        "Loss, training (as optimized)",
        "Gradient norm (L2, before clipping)",
    } <= shown


def test_what_cannot_be_drawn_is_said() -> None:
    notes = curves_of(sweep(), "grpo/lr").notes
    assert (
        "Loss, training: no finite number at 3 of 40 points of grpo/lr/0.001/seed1, first at step 38; "
        "these are not drawn." in notes
    )
    assert "Clipped at the upper bound: 0 throughout." in notes
    assert "Not recorded by these runs: length, dev problems." in notes
    assert len(notes) == len(set(notes))
    assert "Accuracy, dev problems: no point with a known training time." in curves_of(sweep(), "sft").notes


def test_clipping_is_drawn_where_there_is_some() -> None:
    points = grpo_curve(10, 0.01, 0)
    points[5]["metrics"]["train/clip_fraction_high"] = 0.25
    data = sweep(curves={"grpo/lr/2e-05/seed0": points})
    texts = [text for figure in curves_of(data, "grpo/lr").more for panel in figure.panels for text in svg_texts(panel)]
    assert "Clipped at the upper bound (% of tokens)" in texts
    assert "Clipped at the lower bound (% of tokens)" not in texts


def test_many_members_become_small_multiples_that_share_their_axes() -> None:
    raw, filtered = curves_of(sweep(), "sft").first
    assert (raw.title, filtered.title) == ("Accuracy, variant raw", "Accuracy, variant filtered")
    assert [len(raw.legend), len(filtered.legend)] == [5, 5]
    assert svg_texts(raw.panels[0]) == svg_texts(filtered.panels[0])


def test_members_that_no_setting_splits_are_split_by_number() -> None:
    runs = [
        (Comparison(name=f"grpo/{n}/seed0", method="grpo", seed=0, experiment="grpo", varied={RATE: n}), 3, 6)
        for n in range(20)
    ]
    analysis = analysis_of(*runs)
    curves = {run.name: curve(3, "train/loss") for run, _, _ in runs}
    data = ReportData(title="t", analysis=analysis, evaluations=[run for run, _, _ in runs], curves=curves)
    figures = curves_of(data, "grpo").more
    assert [len(figure.legend) for figure in figures] == [MOST_MEMBERS, MOST_MEMBERS, 4]
    assert figures[0].title == "Optimization, 0 to 7"


def test_points_that_are_no_numbers_do_not_spoil_their_neighbours() -> None:
    bad: list[dict[str, Any]] = [
        {"step": 1, "metrics": {"train/loss": value}} for value in (float("nan"), float("inf"), None, "x", True)
    ]
    # Long enough to be averaged, where one number that is none would spoil its neighbours.
    good: list[dict[str, Any]] = [*curve(600, "train/loss"), {"step": None, "metrics": None}]
    with_bad, without = (
        [figure.panels for figure in curves_of(sweep(curves={"grpo/lr/2e-05/seed0": rows}), "grpo/lr").more]
        for rows in ([*bad, *good], good)
    )
    assert with_bad == without
    assert with_bad
    assert curves_of(sweep(curves={"grpo/lr/2e-05/seed0": bad}), "grpo/lr").figures == []
    assert curves_of(sweep(curves={}), "grpo/lr") == ExperimentCurves()


@pytest.mark.parametrize("outlined", [True, False])
def test_members_are_the_same_whether_outlined_or_not(outlined: bool) -> None:
    data = sweep() if outlined else sweep(experiments=[])
    assert [member.group for member in by_name(data)["grpo/lr"].members] == [
        f"grpo/lr/{rate}" for rate in (2e-05, 0.0002, 0.001)
    ]
    assert len(sweep_runs()) == 20
    assert [outline.name for outline in outlines()] == ["grpo/lr", "sft", "grpo/never"]
