"""Figures: what they show, say and leave out, and the same bytes every time: pytest tests/test_figures.py"""

import re
from typing import Any

import numpy as np
import pytest
from invented_study import analysis_of, curve, study, svg_texts

from alignment_core.drawing import draw, interval_dot, short, thin
from alignment_core.figures import categories_figure, curve_figures, methods_figure, rounds_figure, size_figure
from alignment_core.stage_config import Comparison


def test_a_panel_is_well_formed_repeats_and_follows_the_theme() -> None:
    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#0072b2")
        axes.set_xlabel("a < b & $c$")

    svg = draw("panel", 'about "it"', paint, 2.0)
    assert svg == draw("panel", 'about "it"', paint, 2.0)
    assert "a < b & $c$" in svg_texts(svg)
    assert "currentColor" in svg
    assert "var(--series-0, #0072b2)" in svg
    assert 'aria-label="about &quot;it&quot;"' in svg
    assert not re.search(r"<metadata|<!|<\?|dejavu", svg, re.IGNORECASE)


@pytest.mark.parametrize("upright", [True, False])
def test_a_dot_stands_on_its_interval(upright: bool) -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    interval_dot(axes, (30.0, 40.0), (25.0, 50.0), 0, "o", upright)
    (segment,) = axes.collections[0].get_segments()  # type: ignore[attr-defined]
    (dot,) = axes.lines
    assert segment.tolist() == ([[30, 25], [30, 50]] if upright else [[25, 40], [50, 40]])
    assert np.array_equal(dot.get_xydata(), [[30, 40]])


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    methods_figure(study())
    assert dict(matplotlib.rcParams) == before


def test_methods_figure_names_settings_once_and_only_last_rounds() -> None:
    figure = methods_figure(study())
    texts = svg_texts(figure.panels[0])
    assert [text for text in texts if "/" in text] == ["sft/128/raw", "ei/base", "grpo/base"]
    assert "Accuracy (%)" in texts
    assert [entry.label for entry in figure.legend] == ["zero-shot", "plain", "sft", "ei", "grpo"]
    assert "One dot per seed" in figure.caption


def test_size_figure_says_what_it_cannot_place() -> None:
    zero = (Comparison(name="zero-shot", method="zero-shot"), 1, 2)
    sized = (Comparison(name="sft/128", method="sft", size=128, variant="raw"), 6, 9)
    unsized = (Comparison(name="sft/full", method="sft"), 6, 9)
    both, lost = size_figure(analysis_of(zero, sized, unsized)), size_figure(analysis_of(zero, unsized))
    assert size_figure(analysis_of(zero)) is None
    assert both is not None
    assert lost is not None
    assert "sft/full" in both.caption
    assert {"128", "Accuracy (%)"} <= set(svg_texts(both.panels[0]))
    assert lost.panels == []


def test_rounds_figure_starts_at_the_start_and_shows_entropy() -> None:
    figure = rounds_figure(study())
    assert figure is not None
    accuracy, entropy = (svg_texts(panel) for panel in figure.panels)
    assert {"0", "1", "2", "Accuracy (%)"} <= set(accuracy)
    assert accuracy.count("0") == 2, "one on each axis"
    assert "Entropy (nats per token)" in entropy
    assert [entry.label for entry in figure.legend] == ["ei/base"]
    assert rounds_figure(analysis_of((Comparison(name="zero-shot", method="zero-shot"), 1, 2))) is None


def test_categories_figure_shows_the_kinds_that_occur() -> None:
    assert [entry.label for entry in categories_figure(study()).legend] == [
        "formatted, right",
        "formatted, wrong",
        "unformatted",
    ]


def test_curves_overlay_runs_of_a_kind_and_say_what_is_missing() -> None:
    curves = {
        "grpo/base/seed0": curve(3, "train/reward", "train/entropy"),
        "grpo/base/seed1": curve(3, "train/reward"),
        "sft/128/seed0": curve(3, "train/loss", "eval/entropy"),
    }
    grpo, sft = curve_figures(curves)
    titles = [next(text for text in svg_texts(panel) if ", " in text) for panel in (*grpo.panels, *sft.panels)]
    assert titles == ["Reward, training", "Entropy, training", "Loss, training", "Entropy, dev problems"]
    assert [entry.label for entry in grpo.legend] == ["grpo/base"]
    assert "No entropy from grpo/base/seed1." in grpo.caption
    assert "Not recorded: accuracy, format rate, loss, response length, gradient norm." in grpo.caption


def test_curves_survive_points_that_are_no_numbers() -> None:
    bad: list[dict[str, Any]] = [
        {"step": 1, "metrics": {"train/loss": value}} for value in (float("nan"), float("inf"), None, "x")
    ]
    # Long enough to be averaged, where one number that is none would spoil its neighbours.
    good: list[dict[str, Any]] = [*curve(600, "train/loss"), {"step": None, "metrics": None}]
    with_bad, without = (curve_figures({"sft": rows})[0].panels for rows in ([*bad, *good], good))
    assert with_bad == without
    assert curve_figures({"sft": []})[0].panels == []


def test_a_long_series_is_averaged_without_losing_its_mean() -> None:
    values = [float(i % 7) for i in range(900)]
    kept = thin(values)
    assert len(kept) == 300
    assert sum(kept) / 300 == pytest.approx(sum(values) / 900)
    assert thin([1.0, 2.0]) == [1.0, 2.0]
    assert thin([]) == []


def test_long_labels_keep_both_ends() -> None:
    label = short("sft/a-very-long-setting-name/filtered")
    assert len(label) <= 26
    assert label.startswith("sft/a-very-lo")
    assert label.endswith("filtered")
