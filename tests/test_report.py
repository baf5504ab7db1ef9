"""The page: deterministic, self-contained, safe with hostile text: pytest tests/test_report.py"""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from invented_study import HOSTILE, MARKUP, PROBLEMS, analysis_of, curve, graded, study, svg_texts, sweep

from alignment_core import report
from alignment_core.evaluation import failing_examples
from alignment_core.report import content_policy, draw_figures, render
from alignment_core.report_data import ReportData, StageRow
from alignment_core.report_text import (
    duration,
    facts,
    p_value,
    percent,
    points,
    quantity,
    setting_name,
    setting_told,
    setting_value,
    visible,
)
from alignment_core.stage_config import Comparison

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
        self.scripts: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag in {"script", "style"}:
            self.scripts.append((dict(attrs).get("type") or tag, ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in {"script", "style"} and self.cdata_elem:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return render(_data())


@pytest.fixture(scope="module")
def page(html: str) -> _Page:
    return _Page(html)


@pytest.fixture(scope="module")
def sweep_page() -> _Page:
    return _Page(render(sweep()))


# The page


def test_the_page_loads_nothing_and_runs_only_its_own_script(html: str, page: _Page) -> None:
    assert not {"img", "link", "iframe", "object", "form", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in {"src", "style"}
        assert name not in {"href", "xlink:href"} or value.startswith("#")
        assert "url(" not in value
    assert not re.search(r"url\(|@import|https?://(?!evil\.example|www\.w3\.org/2000/svg)", html)
    assert [kind for kind, _ in page.scripts] == ["style", "application/json", "script"]


def test_the_policy_names_script_and_style_by_their_digests(page: _Page) -> None:
    policy = dict(page.attributes)["content"]
    policies = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert len(policies) == 1
    assert "unsafe" not in policies[0]
    assert policies[0].startswith("default-src 'none'; ")
    for kind, text in page.scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert (f"'sha256-{digest}'" in policies[0]) == (kind != "application/json")
    assert content_policy("a", "b") != content_policy("a", "c")
    assert policy


def test_hostile_text_is_shown_and_does_nothing(page: _Page) -> None:
    assert MARKUP in page.text
    assert "⟨U+202E⟩⟨U+200B⟩⟨U+0007⟩⟨U+D800⟩" in page.text
    assert "\u202e" not in page.text


def test_samples_enter_as_data_that_a_script_cannot_mistake(page: _Page) -> None:
    (text,) = [text for kind, text in page.scripts if kind == "application/json"]
    data = json.loads(text)
    assert any(MARKUP in str(row) for row in data["rows"])
    assert "<" not in text


def test_the_script_writes_text_and_nothing_else() -> None:
    script = (Path(report.__file__).parent / "templates" / "report.js").read_text(encoding="utf-8")
    forbidden = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval",
        "Function(",
        "fetch",
        "import",
    )
    assert not [word for word in (*forbidden, "XMLHttpRequest", "setTimeout", "location", "srcdoc") if word in script]
    assert "</" not in script


def test_hostile_names_and_titles_are_escaped_everywhere() -> None:
    name = f"sft/{MARKUP}"
    analysis = analysis_of((Comparison(name=name, method="sft", size=1), 3, 6))
    rows = [{"step": 1, "prompt": HOSTILE, HOSTILE: HOSTILE}]
    data = _data(
        title=HOSTILE, question=HOSTILE, description=HOSTILE, analysis=analysis, curves={name: curve(2, "train/loss")},
        rollouts={name: rows}, validations={name: rows}, examples={name: rows}, solved={name: rows},
        leakage={HOSTILE: HOSTILE}, stages=[StageRow(label=HOSTILE, stage=HOSTILE, key=HOSTILE, study=HOSTILE)],
        settings={HOSTILE: HOSTILE, "seeds": HOSTILE}, versions={HOSTILE: HOSTILE}, command=HOSTILE,
        stands_on={name: [{"what": HOSTILE, "stage": HOSTILE, "key": HOSTILE}]},
        prompts=[{"label": HOSTILE, "name": HOSTILE, "text": HOSTILE, "sha256": "0" * 64}],
        published=[{"evaluation": name, "source": HOSTILE, "method": HOSTILE, "accuracy": 1.0,
                    "evaluation_set": HOSTILE, "comparable": comparable, "differs": [HOSTILE], "note": HOSTILE}
                   for comparable in (True, False)],
        experiments=[{"name": name, "method": HOSTILE, "start": HOSTILE, "settings": {HOSTILE: HOSTILE},
                      "members": [{"group": name, "varied": {HOSTILE: HOSTILE}}], "seeds": [4]}],
    )  # fmt: skip
    html = render(data)
    page = _Page(html)
    assert html.encode("utf-8")
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "\u202e" not in html
    assert all(svg.count("<script") == 0 for svg in draw_figures(data).files().values())


def test_the_page_is_valid_utf8_and_the_same_every_time(html: str) -> None:
    assert html.encode("utf-8").decode("utf-8") == html
    assert render(ReportData.model_validate_json(_data(rollouts={}).model_dump_json())) == render(_data(rollouts={}))
    assert render(sweep()) == render(sweep())


def test_ids_are_unique_and_every_reference_resolves(page: _Page, sweep_page: _Page) -> None:
    for one in (page, sweep_page):
        ids = [value for name, value in one.attributes if name == "id"]
        assert len(ids) == len(set(ids))
        links = {value[1:] for name, value in one.attributes if name in {"href", "xlink:href"}}
        assert links <= set(ids)


def test_the_table_shows_numbers_with_intervals_and_verdicts(page: _Page) -> None:
    analysis = study()
    row = analysis.evaluations[0].report
    assert f"{percent(row.accuracy_low)} to {percent(row.accuracy_high)}" in page.text
    said = {comparison.verdict for comparison in analysis.comparisons}
    assert said == {"better", "exploratory"}
    for comparison in analysis.comparisons:
        assert f"{points(comparison.low)} to {points(comparison.high)}" in page.text
    # GRPO and the last round have one run each; the two seeds of SFT and the first round decide nothing alone.
    assert "2 tests, corrected together (Holm). All others are exploratory" in " ".join(page.text.split())
    assert page.text.count("uncorrected") > 1


def test_every_comparison_names_its_test(page: _Page, sweep_page: _Page) -> None:
    assert page.text.count("exact McNemar") > len(study().comparisons)
    data = sweep()
    told = [one.model_copy(update={"test": "seeds_and_problems"}) for one in data.setting_comparisons]
    shares = [one.model_copy(update={"test": "sign_flip"}) for one in data.analysis.comparisons]
    analysis = data.analysis.model_copy(update={"comparisons": shares})
    html = render(sweep(setting_comparisons=told, analysis=analysis))
    assert ", corrected</small><small>over seeds and problems</small>" in html
    assert html.count("<td>over seeds and problems</td>") == len(told)
    assert html.count("<td>sign flip</td>") > len(shares)
    assert "<td>exact McNemar</td>" not in html


def test_every_section_finds_its_way_to_the_page(page: _Page) -> None:
    for expected in (
        "A study", "What it is about.", "plain question-and-answer prompts", "58.3 %", "Format part",
        "no closing think", "parser", "Failing examples: zero-shot (11)", "exact matches", "shares: dev",
        "id p7, why same text", "dropped: wrong answer", "402", "abcdef0123456789", "1 min 14 s",
        "Accuracy, dev problems", "Not part of this study: run alignflow run SCALE/prompt",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_what_was_run_is_told_with_command_prompt_and_keys(sweep_page: _Page) -> None:
    for expected in (
        "alignflow run tiny/grpo-learning-rate --set 'seeds=[0, 1, 2]'", "User: {question}\nAssistant:", "c7" * 32,
        "2,048 train", "torch 2.13.0", "git 3fa8c1d2", "grade/abcdef0123456789", "temperature 1.0",
    ):  # fmt: skip
        assert expected in sweep_page.text, expected


def test_a_study_half_done_says_what_is_missing(sweep_page: _Page) -> None:
    assert "1 of its runs has no evaluation: grpo/lr/0.001/seed2." in sweep_page.text
    assert "not done: seed 2" in sweep_page.text
    assert "Left out of this run" in sweep_page.text
    assert "Loss, training: no finite number at 3 of 40 points" in sweep_page.text
    assert "Not all of this study is done" not in render(_data())


def test_published_numbers_stand_apart_unless_comparable(sweep_page: _Page) -> None:
    assert "1 that are not comparable, and why" in sweep_page.text
    assert "not comparable: template (c7d73c here, 562137 there)" in sweep_page.text
    assert "None of them is comparable" not in sweep_page.text
    assert "704 of 1,024" in sweep_page.text
    others = [row for row in sweep().published if not row.comparable]
    assert "None of them is comparable" in render(sweep(published=others))
    assert "<details open><summary>1 that are not comparable" in render(sweep(published=others))


def test_a_study_without_the_extras_still_has_a_page() -> None:
    analysis = analysis_of((Comparison(name="zero-shot", method="zero-shot"), 0, 0))
    page = _Page(render(ReportData(title="Only zero-shot", analysis=analysis)))
    assert "was not measured" in page.text
    assert "No run of this study is compared" in page.text
    assert "it evaluates the base model" in page.text
    absent = {"#training", "#samples", "#data", "#stages", "#cost", "#published"}
    assert not absent & {value for _, value in page.attributes}
    assert [kind for kind, _ in page.scripts] == ["style", "script"]


def test_rollouts_stand_in_the_page_without_a_script_too() -> None:
    rows = [{"step": step, "response": f"rollout number {step}."} for step in range(100)]
    page = _Page(render(_data(rollouts={"grpo/base/seed0": rows})))
    assert "8 of 100 rollouts" in page.text
    assert "rollout number 0." in page.text
    assert "rollout number 99." in page.text
    assert ("hidden", "") in page.attributes


def test_figures_are_files_too_with_title_and_legend() -> None:
    data = _data(curves={"grpo/base/seed0": curve(2, "train/loss"), "sft": []})
    figures = draw_figures(data)
    files = figures.files()
    assert list(files) == [
        "sft-accuracy-of-each-member.svg",
        "ei-accuracy-of-each-member.svg",
        "ei-round-by-round.svg",
        "grpo-accuracy-of-each-member.svg",
        "grpo-optimization.svg",
        "response-categories.svg",
    ]
    texts = svg_texts(files["ei-round-by-round.svg"])
    assert {"ei: Round by round", "base", "Accuracy (%)", "Entropy (nats per token)"} <= set(texts)
    assert render(data, figures) == render(data)


def test_two_figures_never_share_a_file() -> None:
    names = ("grpo/a", "grpo!a")
    runs = [(Comparison(name=f"{name}/seed0", method="grpo", seed=0, experiment=name), 3, 6) for name in names]
    data = ReportData(title="t", analysis=analysis_of(*runs), evaluations=[run for run, _, _ in runs])
    assert list(draw_figures(data).files())[:2] == [
        "grpo-a-accuracy-of-each-member.svg",
        "grpo-a-accuracy-of-each-member-2.svg",
    ]
    page = _Page(render(data))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.report.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="the report needs jinja2: pip install"):
        render(_data())


def test_every_template_is_in_the_key_of_the_page() -> None:
    folder = Path(report.__file__).parent / "templates"
    assert {path.name for path in folder.glob("report*")} == {*report.TEMPLATES, report.STYLE, report.SCRIPT}


# Words and numbers


def test_long_texts_are_cut_and_the_rest_is_counted() -> None:
    assert visible("x" * 4_007).endswith("x\n… 7 more characters")
    assert visible("a\tb\r\nc\rd") == "a\tb\nc⟨U+000D⟩d"
    assert visible("\u2066a\u00ad\U000e0041\ufe0f") == "⟨U+2066⟩a⟨U+00AD⟩⟨U+E0041⟩⟨U+FE0F⟩"


def test_numbers_read_as_people_write_them() -> None:
    assert (percent(0.0456), percent(None)) == ("4.6", DASH)
    assert (points(0.5), points(-0.013), points(None)) == ("+50.0", "\u22121.3", DASH)
    assert [duration(s) for s in (3.21, 42.4, 74, 7500, None)] == ["3.2 s", "42 s", "1 min 14 s", "2 h 5 min", DASH]
    told = ["999", "9,999", "10 k", "123 k", "1.23 M", "4.5 G", DASH]
    assert [quantity(n) for n in (999, 9_999, 10_000, 123_400, 1.234e6, 4.5e9, None)] == told


def test_p_values_keep_two_digits_however_small() -> None:
    told = {1.0: "1", 0.25: "0.25", 0.049: "0.049", 0.0034: "0.0034", 3.21e-4: "3.2 × 10⁻⁴", 1e-15: "1.0 × 10⁻¹⁵"}
    assert [p_value(p) for p in told] == list(told.values())
    assert p_value(0.0) == "< 10⁻⁹⁹"
    assert p_value(float("nan")) == DASH


def test_settings_read_as_people_write_them() -> None:
    assert [setting_value(value) for value in (2e-5, 0.001, True, None, [1, 2.5], "raw", 128)] == [
        "2e-5", "0.001", "yes", DASH, "1, 2.5", "raw", "128",
    ]  # fmt: skip
    texts = {"True": "yes", "None": DASH, "1e-05": "2e-5", "128": "128", "raw": "raw"}
    assert [setting_told(text) for text in texts] == ["yes", DASH, "1e-5", "128", "raw"]
    assert setting_name("grpo.optimizer.learning_rate") == "learning rate"


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
