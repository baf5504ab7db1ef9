"""The page: deterministic, self-contained, safe with hostile text: pytest tests/test_report.py"""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from invented_study import MARKUP, PROBLEMS, analysis_of, curve, graded, study, svg_texts

from alignment_core.evaluation import failing_examples
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
from alignment_core.stage_config import Comparison

HOSTILE = f"{MARKUP} \u202e\x07\ud800"
DASH = "\u2013"


def _data(**more: Any) -> ReportData:
    completions, grades = graded(1, 2)
    fields: dict[str, Any] = {
        "title": "A study",
        "description": "What it is about.",
        "analysis": study(),
        "leakage": {"exact_matches": 0, "shares": {"dev": 0.25}, "removed": [{"id": "p7", "why": "same text"}]},
        "filter_report": {"kept": 1311, "dropped": {"wrong_answer": 402}},
        "curves": {"grpo/base/seed0": curve(4, "train/reward", "eval/accuracy")},
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
    analysis = analysis_of((Comparison(name=name, method="zero-shot"), 3, 6))
    rows = [{"step": 1, "prompt": HOSTILE, HOSTILE: HOSTILE}]
    data = _data(
        title=HOSTILE, description=HOSTILE, analysis=analysis, curves={name: curve(2, "train/loss")},
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
    analysis = study()
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
    analysis = analysis_of((Comparison(name="zero-shot", method="zero-shot"), 0, 0))
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
    data = _data(curves={"grpo/a": curve(2, "train/loss"), "grpo!/a": curve(2, "train/loss"), "sft": []})
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
    texts = svg_texts(files["expert-iteration-round-by-round.svg"])
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
