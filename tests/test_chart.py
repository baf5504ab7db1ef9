"""Panels: axes that hold their data, round ticks, nothing outside, no style attribute: pytest tests/test_chart.py"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_study import MARKUP, svg_texts

from alignment_core.chart import (
    Panel,
    linear_axis,
    log_axis,
    nice_step,
    rows_axis,
    rows_height,
    scientific,
)
from alignment_core.drawing import COLORS, MARKERS, WIDTH, Figure, line_legend, look, short, standalone, thin

NUMBERS = st.floats(-1e7, 1e7).map(lambda value: round(value, 6))


@pytest.mark.parametrize(("span", "step"), [(10, 2), (9.9, 2), (1, 0.2), (0.03, 0.01), (100, 20), (7, 2), (30, 10)])
def test_steps_are_one_two_or_five_times_a_power_of_ten(span: float, step: float) -> None:
    assert nice_step(span) == pytest.approx(step)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_an_axis_holds_its_values_between_few_round_ticks(values: list[float]) -> None:
    axis = linear_axis("x", values)
    slack = 1e-8 * (max(values) - min(values))  # far less than a line's width
    assert axis.low <= min(values) + slack
    assert axis.high >= max(values) - slack
    assert 2 <= len(axis.ticks) <= 8
    assert all(-1e-8 <= axis.share(value) <= 1 + 1e-8 for value in values)
    gaps = [b.value - a.value for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps))


def test_ticks_are_written_as_people_write_them() -> None:
    def labels(*values: float, **more: bool) -> list[str]:
        return [tick.label for tick in linear_axis("x", values, 0.0, **more).ticks]

    assert labels(0.0, 100.0) == ["0", "20", "40", "60", "80", "100"]
    assert labels(0.25) == ["0.00", "0.05", "0.10", "0.15", "0.20", "0.25"]
    assert labels(42_000.0) == ["0", "10k", "20k", "30k", "40k", "50k"]
    assert labels(3.0, whole=True) == ["0", "1", "2", "3"]
    assert labels(2.0, whole=True) == ["0", "1", "2"]
    assert labels(12.0, whole=True, tight=True) == ["0", "5", "10"]
    assert labels(2e-5) == ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]
    assert [tick.label for tick in linear_axis("x", [-0.02, 0.01]).ticks] == ["−0.02", "−0.01", "0.00", "0.01"]
    assert (scientific(2e-5), scientific(-1.5e-4)) == ("2e-5", "−1.5e-4")


def test_equal_values_get_room_and_a_bottom_is_kept() -> None:
    assert (linear_axis("x", [0.0, 0.0]).low, linear_axis("x", [0.0]).high) == (0.0, 1.0)
    axis = linear_axis("x", [5.0], 0.0)
    assert (axis.low, axis.high) == (0.0, 5.0)
    assert linear_axis("x", [-1.0, 5.0], 0.0).low < 0
    assert linear_axis("x", [3.0, 12.0], 0.0, tight=True).high == 12.0


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_an_axis_of_no_numbers_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        linear_axis("loss", values)


def test_a_logarithmic_axis_has_its_values_as_ticks_unless_they_touch() -> None:
    axis = log_axis("n", [128.0, 256.0, 1024.0, 1030.0])
    assert [tick.label for tick in axis.ticks] == ["128", "256", "1,024"]
    assert axis.share(512) - axis.share(256) == pytest.approx(axis.share(256) - axis.share(128))
    with pytest.raises(ValueError, match="above 0"):
        log_axis("n", [0.0, 1.0])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12))
def test_nothing_is_drawn_outside_the_panel(points: list[tuple[float, float]]) -> None:
    panel = Panel(linear_axis("x", [x for x, _ in points], tight=True), linear_axis("y", [y for _, y in points]))
    for x, y in map(panel.place, points):
        assert -0.1 <= x <= WIDTH
        assert 0 <= y <= panel.height


def test_a_panel_is_well_formed_repeats_and_follows_the_theme() -> None:
    def draw() -> str:
        panel = Panel(linear_axis("a < b & $c$", [0, 1]), linear_axis("y", [0, 1]))
        panel.line([(0, 0), (1, 1)], look(0))
        panel.line([(0.5, 0.5)], look(1))
        panel.line([], look(1))
        panel.area([(0, 1), (1, 1)], [(0, 0), (1, 0.5)], look(0))
        for index in range(len(MARKERS)):
            panel.mark((0.5, 0.5), look(index), title=MARKUP)
        panel.span((0, 0), (1, 0), look(2))
        return panel.svg('about "it"')

    svg = draw()
    assert svg == draw()
    assert {"a < b & $c$", "y", "0.0", "1.0"} <= set(svg_texts(svg))
    assert "currentColor" in svg
    assert "var(--series-0, #0072b2)" in svg
    assert 'aria-label="about &quot;it&quot;"' in svg
    assert not re.search(r"style=|<style|<!|<\?|<script| id=|nan|inf", svg)
    assert 'd="M"' not in svg


def test_named_rows_stand_below_one_another() -> None:
    panel = Panel(linear_axis("Accuracy (%)", [0, 100]), rows_axis(["first", "second"]), rows_height(2))
    panel.bar(0, 50, 0.0, look(0), "half")
    assert panel.place((0, 0))[1] < panel.place((0, -1))[1]
    assert [text for text in svg_texts(panel.svg("rows")) if text in {"first", "second"}] == ["first", "second"]
    assert re.search(r"<rect [^>]*><title>half</title></rect>", panel.svg("rows"))


def test_series_differ_in_more_than_hue() -> None:
    looks = [look(index) for index in range(24)]
    assert len({(one.color, one.dash) for one in looks}) == 24
    assert len({one.marker for one in looks[:6]}) == 6
    legend = line_legend([str(index) for index in range(7)])
    assert legend[0].color == legend[6].color
    assert legend[0].dash != legend[6].dash


def test_a_figure_stands_alone_without_css_variables() -> None:
    panel = Panel(linear_axis("x", [0, 1]), linear_axis("y", [0, 1]))
    panel.line([(0, 0), (1, 1)], look(1))
    svg = standalone(Figure("Title", [panel.svg("p")], line_legend(["a<b"]), "", "grpo/lr"))
    assert svg_texts(svg)[:2] == ["grpo/lr: Title", "a<b"]
    assert "var(" not in svg
    assert COLORS[1] in svg


def test_a_long_series_is_averaged_without_losing_its_mean() -> None:
    values = [float(i % 7) for i in range(960)]
    kept = thin(values, 240)
    assert len(kept) == 240
    assert sum(kept) / 240 == pytest.approx(sum(values) / 960)
    assert thin([1.0, 2.0], 240) == [1.0, 2.0]
    assert thin([], 240) == []


def test_long_labels_keep_both_ends() -> None:
    label = short("sft/a-very-long-setting-name/filtered")
    assert len(label) <= 26
    assert label.startswith("sft/a-very-lo")
    assert label.endswith("filtered")
