"""Figures and the page: deterministic, self-contained, safe with hostile text: pytest tests/test_report.py"""

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from alignment_core.analysis import Analysis, analyze
from alignment_core.config import Comparison
from alignment_core.drawing import draw, interval_dot, short, thin
from alignment_core.evaluation import correct_by_problem, evaluate, failing_examples
from alignment_core.figures import categories_figure, curve_figures, methods_figure, rounds_figure, size_figure
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.report import (
    ReportData,
    StageRow,
    draw_figures,
    duration,
    facts,
    p_value,
    percent,
    points,
    render,
    visible,
)

MARKUP = "</pre></svg><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)> {{ 7 * 7 }}"
HOSTILE = f"{MARKUP} \u202e\x07\ud800"
DASH = "\u2013"
PROBLEMS = [Problem(id=f"p{i}", question="3 + 5?", prompt="User: 3 + 5?", ground_truth="8") for i in range(12)]


def _graded(right: int, formatted: int) -> tuple[list[Completion], list[GradedResponse]]:
    """The first `right` answers are right, the first `formatted` formatted."""
    completions = [
        Completion(
            problem_id=problem.id,
            sample_index=0,
            prompt_ids=[0],
            response_ids=[1] * 5,
            text=" 8 </think> <answer> 8 </answer>" if i < formatted else MARKUP,
            finish_reason="stop",
            mean_entropy=0.5,
        )
        for i, problem in enumerate(PROBLEMS)
    ]
    grades = [
        GradedResponse(
            format_reward=i < formatted,
            answer_reward=i < right,
            reward=i < right,
            extracted="8" if i < right else "9" if i < formatted else None,
        )
        for i in range(len(PROBLEMS))
    ]
    return completions, grades


def _analysis(*runs: tuple[Comparison, int, int]) -> Analysis:
    graded = {run.name: _graded(right, formatted) for run, right, formatted in runs}
    return analyze(
        [run for run, _, _ in runs],
        {name: evaluate(PROBLEMS, *pair) for name, pair in graded.items()},
        {name: correct_by_problem(*pair) for name, pair in graded.items()},
        resamples=200,
    )


def _study() -> Analysis:
    return _analysis(
        (Comparison(name="zero-shot", method="zero-shot"), 1, 2),
        (Comparison(name="plain", method="plain"), 7, 12),
        (Comparison(name="sft/128/raw/seed0", method="sft", start="zero-shot", seed=0, size=128, variant="raw"), 6, 9),
        (Comparison(name="sft/128/raw/seed1", method="sft", start="zero-shot", seed=1, size=128, variant="raw"), 7, 9),
        (Comparison(name="ei/base/seed0/round1", method="ei", start="zero-shot", seed=0, step=1), 4, 8),
        (Comparison(name="ei/base/seed0/round2", method="ei", start="ei/base/seed0/round1", seed=0, step=2), 9, 12),
        (Comparison(name="grpo/base/seed0", method="grpo", start="zero-shot", seed=0), 11, 12),
    )


def _curve(steps: int, *names: str) -> list[dict[str, Any]]:
    return [{"step": step, "metrics": {name: 0.5 + step / 100 for name in names}} for step in range(1, steps + 1)]


def _data(**more: Any) -> ReportData:
    completions, grades = _graded(1, 2)
    fields: dict[str, Any] = {
        "title": "A study",
        "description": "What it is about.",
        "analysis": _study(),
        "leakage": {"exact_matches": 0, "shares": {"dev": 0.25}, "removed": [{"id": "p7", "why": "same text"}]},
        "filter_report": {"kept": 1311, "dropped": {"wrong_answer": 402}},
        "curves": {"grpo/base/seed0": _curve(4, "train/reward", "eval/accuracy")},
        "rollouts": {"grpo/base/seed0": [{"step": 10, "prompt": "3 + 5?", "response": HOSTILE, "reward": 0.0}]},
        "examples": {"zero-shot": failing_examples(PROBLEMS, completions, grades)},
        "stages": [StageRow(label="pretrain", stage="pretrain", key="abcdef0123456789abcdef", seconds=74.0)],
    }
    return ReportData.model_validate(fields | more)


class _Page(HTMLParser):
    """Tags, attributes and text of a page as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return render(_data())


@pytest.fixture(scope="module")
def page(html: str) -> _Page:
    return _Page(html)


# The page


def test_the_page_loads_nothing_and_runs_nothing(html: str, page: _Page) -> None:
    assert not {"script", "img", "link", "iframe", "object", "form", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "src"
        assert name not in {"href", "xlink:href"} or value.startswith("#")
        assert "url(" not in value or "url(#" in value
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", html)
    assert "default-src 'none'" in html


def test_hostile_text_is_shown_and_does_nothing(page: _Page) -> None:
    assert MARKUP in page.text
    assert "⟨U+202E⟩⟨U+0007⟩⟨U+D800⟩" in page.text
    assert "\u202e" not in page.text


def test_hostile_names_and_titles_are_escaped_everywhere() -> None:
    name = f"sft/{MARKUP}"
    analysis = _analysis((Comparison(name=name, method="zero-shot"), 3, 6))
    rows = [{"step": 1, "prompt": HOSTILE, HOSTILE: HOSTILE}]
    data = _data(
        title=HOSTILE, description=HOSTILE, analysis=analysis, curves={name: _curve(2, "train/loss")},
        rollouts={name: rows}, examples={name: rows}, leakage={HOSTILE: HOSTILE},
        stages=[StageRow(label=HOSTILE, stage=HOSTILE, key=HOSTILE)],
    )  # fmt: skip
    html = render(data)
    page = _Page(html)
    assert html.encode("utf-8")
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_page_is_valid_utf8_and_the_same_every_time(html: str) -> None:
    assert html.encode("utf-8").decode("utf-8") == html
    assert render(ReportData.model_validate_json(_data(rollouts={}).model_dump_json())) == render(_data(rollouts={}))


def test_ids_are_unique_and_every_reference_resolves(page: _Page) -> None:
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = {value[1:] for name, value in page.attributes if name in {"href", "xlink:href"}}
    clips = {value[5:-1] for name, value in page.attributes if name == "clip-path"}
    assert links | clips <= set(ids)


def test_the_table_shows_numbers_with_intervals_and_verdicts(page: _Page) -> None:
    analysis = _study()
    row = analysis.evaluations[0].report
    assert f"{percent(row.accuracy_low)} to {percent(row.accuracy_high)}" in page.text
    said = {comparison.verdict for comparison in analysis.comparisons}
    assert said == {"better", "cannot tell"}
    for comparison in analysis.comparisons:
        assert f"{points(comparison.low)} to {points(comparison.high)}" in page.text
    assert page.text.count("cannot tell") > 1


def test_every_section_finds_its_way_to_the_page(page: _Page) -> None:
    for expected in (
        "A study", "What it is about.", "plain question-and-answer prompts", "58.3 %", "Format part", "Over seeds",
        "no closing think", "parser", "Failing examples: zero-shot (11)", "exact matches", "shares: dev",
        "id p7, why same text",
        "dropped: wrong answer", "402", "abcdef0123456789", "1 min 14 s", "Accuracy, dev problems",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_a_study_without_the_extras_still_has_a_page() -> None:
    analysis = _analysis((Comparison(name="zero-shot", method="zero-shot"), 0, 0))
    page = _Page(render(ReportData(title="Only zero-shot", analysis=analysis)))
    assert "was not measured" in page.text
    assert "No run of this study is compared" in page.text
    assert not {"#training", "#rollouts", "#data", "#stages"} & {value for _, value in page.attributes}


def test_many_rollouts_are_thinned_and_the_page_says_so() -> None:
    rows = [{"step": step, "response": f"rollout number {step}."} for step in range(100)]
    page = _Page(render(_data(rollouts={"grpo/base/seed0": rows})))
    assert "24 of 100 rollouts" in page.text
    assert "rollout number 0." in page.text
    assert "rollout number 99." in page.text


def test_figures_are_files_too_with_title_and_legend() -> None:
    data = _data(curves={"grpo/a": _curve(2, "train/loss"), "grpo!/a": _curve(2, "train/loss"), "sft": []})
    figures = draw_figures(data)
    files = figures.files()
    assert list(files) == [
        "accuracy-by-method.svg",
        "accuracy-and-sft-data-set-size.svg",
        "expert-iteration-round-by-round.svg",
        "response-categories.svg",
        "training-curves-grpo.svg",
        "training-curves-grpo-2.svg",
    ]
    texts = _texts(files["expert-iteration-round-by-round.svg"])
    assert {"Expert Iteration, round by round", "ei/base", "Accuracy (%)", "Entropy (nats per token)"} <= set(texts)
    assert render(data, figures) == render(data)


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.report.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="the report needs jinja2: install"):
        render(_data())


# Words and numbers


def test_long_texts_are_cut_and_the_rest_is_counted() -> None:
    assert visible("x" * 4_007).endswith("x\n… 7 more characters")
    assert visible("a\tb\r\nc\rd") == "a\tb\nc⟨U+000D⟩d"


def test_numbers_read_as_people_write_them() -> None:
    assert (percent(0.0456), percent(None)) == ("4.6", DASH)
    assert (points(0.5), points(-0.013), points(None)) == ("+50.0", "\u22121.3", DASH)
    assert [p_value(p) for p in (1e-9, 0.0034, 0.25, 1.0)] == ["< 0.0001", "0.0034", "0.25", "1.00"]
    assert [duration(s) for s in (3.21, 42.4, 74, 7500, None)] == ["3.2 s", "42 s", "1 min 14 s", "2 h 5 min", DASH]


def test_facts_flatten_any_plain_data() -> None:
    nested = {"nested": {"share": 0.123456}, "list": [{"a": 1, "b": 2}, "c"], "empty": []}
    values = {"n_test": 1, "ok": True, "no": None} | nested
    assert facts(values) == [
        ("n test", "1"),
        ("ok", "yes"),
        ("no", DASH),
        ("nested: share", "0.1235"),
        ("list", "a 1, b 2; c"),
        ("empty", "none"),
    ]


# Figures


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_panel_is_well_formed_repeats_and_follows_the_theme() -> None:
    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#0072b2")
        axes.set_xlabel("a < b & $c$")

    svg = draw("panel", 'about "it"', paint, 2.0)
    assert svg == draw("panel", 'about "it"', paint, 2.0)
    assert "a < b & $c$" in _texts(svg)
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
    methods_figure(_study())
    assert dict(matplotlib.rcParams) == before


def test_methods_figure_names_settings_once_and_only_last_rounds() -> None:
    figure = methods_figure(_study())
    texts = _texts(figure.panels[0])
    assert [text for text in texts if "/" in text] == ["sft/128/raw", "ei/base/round2", "grpo/base"]
    assert "Accuracy (%)" in texts
    assert [entry.label for entry in figure.legend] == ["zero-shot", "plain", "sft", "ei", "grpo"]
    assert "One dot per seed" in figure.caption


def test_size_figure_says_what_it_cannot_place() -> None:
    zero = (Comparison(name="zero-shot", method="zero-shot"), 1, 2)
    sized = (Comparison(name="sft/128", method="sft", size=128, variant="raw"), 6, 9)
    unsized = (Comparison(name="sft/full", method="sft"), 6, 9)
    both, lost = size_figure(_analysis(zero, sized, unsized)), size_figure(_analysis(zero, unsized))
    assert size_figure(_analysis(zero)) is None
    assert both is not None
    assert lost is not None
    assert "sft/full" in both.caption
    assert {"128", "Accuracy (%)"} <= set(_texts(both.panels[0]))
    assert lost.panels == []


def test_rounds_figure_starts_at_the_start_and_shows_entropy() -> None:
    figure = rounds_figure(_study())
    assert figure is not None
    accuracy, entropy = (_texts(panel) for panel in figure.panels)
    assert {"0", "1", "2", "Accuracy (%)"} <= set(accuracy)
    assert accuracy.count("0") == 2, "one on each axis"
    assert "Entropy (nats per token)" in entropy
    assert [entry.label for entry in figure.legend] == ["ei/base"]
    assert rounds_figure(_analysis((Comparison(name="zero-shot", method="zero-shot"), 1, 2))) is None


def test_categories_figure_shows_the_kinds_that_occur() -> None:
    assert [entry.label for entry in categories_figure(_study()).legend] == [
        "formatted, right",
        "formatted, wrong",
        "unformatted",
    ]


def test_curves_overlay_runs_of_a_kind_and_say_what_is_missing() -> None:
    curves = {
        "grpo/base/seed0": _curve(3, "train/reward", "train/entropy"),
        "grpo/base/seed1": _curve(3, "train/reward"),
        "sft/128/seed0": _curve(3, "train/loss", "eval/entropy"),
    }
    grpo, sft = curve_figures(curves)
    titles = [next(text for text in _texts(panel) if ", " in text) for panel in (*grpo.panels, *sft.panels)]
    assert titles == ["Reward, training", "Entropy, training", "Loss, training", "Entropy, dev problems"]
    assert [entry.label for entry in grpo.legend] == ["grpo/base"]
    assert "No entropy from grpo/base/seed1." in grpo.caption
    assert "Not recorded: accuracy, format rate, loss, response length, gradient norm." in grpo.caption


def test_curves_survive_points_that_are_no_numbers() -> None:
    bad: list[dict[str, Any]] = [
        {"step": 1, "metrics": {"train/loss": value}} for value in (float("nan"), float("inf"), None, "x")
    ]
    # Long enough to be averaged, where one number that is none would spoil its neighbours.
    good: list[dict[str, Any]] = [*_curve(600, "train/loss"), {"step": None, "metrics": None}]
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
