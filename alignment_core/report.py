"""The page of a study: one self-contained HTML file from plain data.

Model text is hostile input: the template escapes everything, invisible and direction-changing characters are shown as
codes, and the page's own content policy forbids scripts and any request. The same data gives the same page.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from alignment_core.analysis import Analysis, EvaluationRow, GroupRow
from alignment_core.comparisons import PairedComparison
from alignment_core.drawing import Figure, standalone
from alignment_core.figures import categories_figure, curve_figures, methods_figure, rounds_figure, size_figure
from alignment_core.records import Record
from alignment_core.taxonomy import REASONS

Row = dict[str, Any]

_NOTHING = "\u2013"
"""A dash, where there is no value to show."""
_LONGEST_TEXT = 4_000
"""Characters of one prompt or response that a page shows."""
_SHORT_TEXT = 60
"""Longer values, and those with line breaks, get a block of their own."""
_MOST_ROLLOUTS = 24
"""Rollouts shown per run, spread evenly over training."""
# Controls, direction overrides, zero-width characters and lone surrogates: nothing a reader could see.
_INVISIBLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ud800-\\udfff]"
)


class StageRow(Record):
    """One stage that the study ran or found in its store."""

    label: str
    stage: str
    key: str
    seconds: float | None = None
    """How long it took when it was computed; None if unknown."""
    accepted: str = ""
    """Why it stands although its code changed since; empty if it is of this code."""


class ReportData(Record):
    """Everything a page shows."""

    title: str
    description: str = ""
    analysis: Analysis
    leakage: Row | None = None
    """What the search for test problems among the training problems found."""
    filter_report: Row | None = None
    """How many traces the filter kept, and why others were dropped."""
    curves: dict[str, list[Row]] = Field(default_factory=dict)
    """Run name -> points {"step": int, "metrics": {name: number}}."""
    rollouts: dict[str, list[Row]] = Field(default_factory=dict)
    """Run name -> sample rows, with a `step` where it is known."""
    examples: dict[str, list[Row]] = Field(default_factory=dict)
    """Evaluation name -> rows of `evaluation.failing_examples`."""
    stages: list[StageRow] = Field(default_factory=list)
    settings: dict[str, str] = Field(default_factory=dict)
    """Every setting of the study by dotted name."""


class Figures(NamedTuple):
    """The figures of a page, in the places they take on it."""

    methods: Figure
    results: list[Figure]
    """Accuracy against data set size, Expert Iteration rounds: those the study has."""
    categories: Figure
    curves: list[Figure]

    def files(self) -> dict[str, str]:
        """Every figure as an SVG file of its own, by file name."""
        every = [self.methods, *self.results, self.categories, *self.curves]
        names = [re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-") for figure in every]
        # Two kinds of run may differ only in characters that a file name cannot hold.
        unique = [f"{name}-{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]
        return {f"{name}.svg": standalone(figure) for name, figure in zip(unique, every, strict=True) if figure.panels}


def draw_figures(data: ReportData) -> Figures:
    """All figures of a page. Raises ModuleNotFoundError with the remedy where matplotlib is missing."""
    _require("matplotlib")
    sizes, rounds = size_figure(data.analysis), rounds_figure(data.analysis)
    return Figures(
        methods=methods_figure(data.analysis),
        results=[figure for figure in (sizes, rounds) if figure is not None],
        categories=categories_figure(data.analysis),
        curves=curve_figures(data.curves),
    )


def render(data: ReportData, figures: Figures | None = None) -> str:
    """The report as one HTML page that loads nothing from anywhere; `figures` if they are drawn already.

    Raises ModuleNotFoundError with the remedy where jinja2 or matplotlib is missing.
    """
    environment = _environment()
    figures = figures or draw_figures(data)
    analysis = data.analysis
    by_name = {row.name: row for row in analysis.evaluations}
    # Seeds of one setting stand together.
    rows = [by_name[name] for group in analysis.groups for name in group.members]
    page: str = environment.get_template("report.html.j2").render(
        data=data,
        analysis=analysis,
        rows=rows,
        gains=[gain for row in rows for gain in analysis.gains if gain.name == row.name],
        versus=_versus(analysis),
        plain=[row for row in analysis.evaluations if row.name in analysis.plain],
        figures=figures,
        reasons=REASONS,
        failures=_failure_counts(analysis.groups, by_name),
        rollouts={run: _spread(rows) for run, rows in data.rollouts.items()},
        seconds=sum(stage.seconds or 0.0 for stage in data.stages),
    )
    return page


def _require(package: str) -> None:
    """Raise ModuleNotFoundError with the remedy unless a package of the report is there."""
    if find_spec(package) is None:
        raise ModuleNotFoundError(f"the report needs {package}: install jinja2 and matplotlib")


def _environment() -> Any:
    """A jinja2 environment that escapes everything and refuses unknown names."""
    _require("jinja2")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "p_value": p_value,
        "number": number,
        "duration": duration,
        "visible": visible,
        "facts": facts,
        "words": words,
        "split_row": split_row,
    }
    return environment


def percent(share: float | None) -> str:
    """A share as per cent with one decimal; a dash for None."""
    return _NOTHING if share is None else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, signed; a dash for None."""
    return _NOTHING if difference is None else f"{100 * difference:+.1f}".replace("-", "\u2212")


def p_value(p: float) -> str:
    """A p-value to two digits, with a floor at which only its smallness is of interest."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separators; a dash for None."""
    return _NOTHING if value is None else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds as 12 s, 3 min 20 s or 2 h 5 min; a dash for None."""
    if seconds is None:
        return _NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def visible(text: object) -> str:
    """Text as a page may show it: cut to a length, invisible characters as codes such as ⟨U+202E⟩."""
    full = str(text)
    shown = _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", full[:_LONGEST_TEXT].replace("\r\n", "\n"))
    left_out = len(full) - _LONGEST_TEXT
    return f"{shown}\n… {left_out:,} more characters" if left_out > 0 else shown


def words(name: object) -> str:
    """A field name as words: `n_test` -> `n test`."""
    return str(name).replace("_", " ")


def facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as (name, text) lines, whatever its shape."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        label = f"{prefix}{words(name)}"
        if isinstance(value, Mapping):
            lines += facts(value, f"{label}: ")
        elif isinstance(value, (list, tuple)):
            shown = [
                ", ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, Mapping) else item for item in value
            ]
            lines.append((label, "; ".join(str(item) for item in shown) or "none"))
        else:
            lines.append((label, _fact(value)))
    return lines


def _fact(value: object) -> str:
    """One plain value as text."""
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def split_row(row: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """A sample row as `short` facts for its head line and `long` texts for blocks."""
    parts: dict[str, list[tuple[str, str]]] = {"short": [], "long": []}
    for name, text in facts(row):
        block = name in {"prompt", "response", "question"} or len(text) > _SHORT_TEXT or "\n" in text
        parts["long" if block else "short"].append((name, text))
    return parts


def _versus(analysis: Analysis) -> dict[str, PairedComparison]:
    """By evaluation, the comparison its verdict in the table is about: with its start, or else with the baseline."""
    found: dict[str, PairedComparison] = {}
    for comparison in analysis.comparisons:
        if comparison.name not in found or "start" in comparison.relations:
            found[comparison.name] = comparison
    return found


def _failure_counts(groups: Sequence[GroupRow], rows: Mapping[str, EvaluationRow]) -> dict[str, dict[str, int]]:
    """Counts by label and setting (over its seeds), for the labels that occur, in table order."""
    counts = {
        label: {
            group.group: sum(rows[name].report.failures.get(label, 0) for name in group.members) for group in groups
        }
        for label in REASONS
    }
    return {label: by_group for label, by_group in counts.items() if any(by_group.values())}


def _spread(rows: Sequence[Row]) -> list[Row]:
    """At most `_MOST_ROLLOUTS` rows in order, first and last included."""
    if len(rows) <= _MOST_ROLLOUTS:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (_MOST_ROLLOUTS - 1))] for place in range(_MOST_ROLLOUTS)]
