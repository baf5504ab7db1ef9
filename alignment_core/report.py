"""The page of a study: one self-contained HTML file from plain data.

Model text is hostile input: the templates escape everything, invisible and direction-changing characters are shown as
codes, samples enter as JSON and are written as text. The page's own content policy allows its one script and its one
style sheet by their sha256 and forbids everything else, every request included. The same data give the same page.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignment_core.analysis import EvaluationRow, GroupRow
from alignment_core.comparisons import PairedComparison
from alignment_core.curve_figures import ExperimentCurves, experiment_curves
from alignment_core.drawing import Figure, standalone
from alignment_core.figures import categories_figure, members_figure, rounds_figure, size_figure
from alignment_core.report_answers import answers, conclusions
from alignment_core.report_costs import WORKS, by_kind, costs, origins
from alignment_core.report_data import PublishedRow, ReportData
from alignment_core.report_deliverables import deliverable_rows
from alignment_core.report_samples import browser, embedded, shown_rollouts
from alignment_core.report_text import (
    duration,
    facts,
    number,
    p_value,
    percent,
    points,
    quantity,
    setting_value,
    split_row,
    test_name,
    visible,
    words,
)
from alignment_core.run_curves import chained
from alignment_core.taxonomy import REASONS

TEMPLATES = (
    "report.html.j2",
    "report_macros.html.j2",
    "report_answers.html.j2",
    "report_evidence.html.j2",
    "report_samples.html.j2",
    "report_setup.html.j2",
)
STYLE, SCRIPT = "report.css", "report.js"
_FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class ExperimentFigures:
    """The figures of one experiment, in the places they take on the page."""

    members: Figure
    results: list[Figure]
    """Accuracy against data set size, Expert Iteration rounds: those it has."""
    curves: ExperimentCurves

    @property
    def all(self) -> list[Figure]:
        """Every one of them."""
        return [self.members, *self.results, *self.curves.figures]


@dataclass(frozen=True)
class Figures:
    """The figures of a page."""

    experiments: dict[str, ExperimentFigures]
    categories: Figure

    def files(self) -> dict[str, str]:
        """Every figure as an SVG file of its own, by file name."""
        every = [figure for one in self.experiments.values() for figure in one.all] + [self.categories]
        names = [re.sub(r"[^a-z0-9]+", "-", figure.full_title.lower()).strip("-") for figure in every]
        # Two titles may differ only in characters that a file name cannot hold.
        unique = [f"{name}-{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]
        return {f"{name}.svg": standalone(figure) for name, figure in zip(unique, every, strict=True) if figure.panels}


def draw_figures(data: ReportData) -> Figures:
    """All figures of a page."""
    runs = chained(data.curves)
    drawn = {}
    for answer in answers(data):
        others = (size_figure(answer), rounds_figure(answer, data.analysis))
        drawn[answer.outline.name] = ExperimentFigures(
            members_figure(answer),
            [figure for figure in others if figure is not None],
            experiment_curves(answer, runs),
        )
    return Figures(drawn, categories_figure(data.analysis))


def render(data: ReportData, figures: Figures | None = None) -> str:
    """The report as one HTML page that loads nothing from anywhere; `figures` if they are drawn already.

    Raises ModuleNotFoundError with the remedy where jinja2 is missing.
    """
    environment = _environment()
    found = answers(data)
    style, script = _read(STYLE), _read(SCRIPT)
    rows = _in_groups(data)
    samples = browser(data)
    page: str = environment.get_template("report.html.j2").render(
        data=data,
        analysis=data.analysis,
        answers=found,
        conclusions={answer.outline.name: conclusions(answer) for answer in found},
        figures=figures or draw_figures(data),
        rows=rows,
        versus=_versus(data.analysis.comparisons),
        deciding=_deciding(data),
        gains=[gain for row in rows for gain in data.analysis.gains if gain.name == row.name],
        plain=[row for row in data.analysis.evaluations if row.name in data.analysis.plain],
        reasons=REASONS,
        failures=_failure_counts(data.analysis.groups, {row.name: row for row in rows}),
        rollouts=shown_rollouts(data),
        samples=samples,
        samples_json=embedded(samples),
        deliverables=deliverable_rows(data, found),
        costs=costs(data, found),
        works=WORKS,
        kinds=by_kind(data.stages),
        origins=origins(data.stages),
        published=_published(data.published),
        missing=[name for answer in found for name in answer.missing],
        seconds=sum(stage.seconds or 0.0 for stage in data.stages),
        style=style,
        script=script,
        policy=content_policy(style, script),
    )
    return page


def content_policy(style: str, script: str) -> str:
    """The page's Content-Security-Policy: its own style sheet and script by their sha256, and nothing else."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _environment() -> Any:
    """A jinja2 environment that escapes everything and refuses unknown names."""
    if find_spec("jinja2") is None:
        raise ModuleNotFoundError("the report needs jinja2: pip install jinja2")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.DictLoader({name: _read(name) for name in TEMPLATES}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = (
        percent,
        points,
        p_value,
        number,
        quantity,
        duration,
        visible,
        facts,
        words,
        split_row,
        setting_value,
        test_name,
    )
    environment.filters |= {function.__name__: function for function in shown}
    environment.filters["moment"] = moment
    return environment


def moment(seconds: float | None) -> str:
    """A Unix time as a person writes it, in UTC; a dash for None."""
    from datetime import UTC, datetime

    return "\u2013" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _in_groups(data: ReportData) -> list[EvaluationRow]:
    """The evaluations, seeds of one setting side by side."""
    by_name = {row.name: row for row in data.analysis.evaluations}
    return [by_name[name] for group in data.analysis.groups for name in group.members]


def _versus(comparisons: Sequence[PairedComparison]) -> dict[str, PairedComparison]:
    """By evaluation, the comparison its verdict in the table is about: with its start, or else with the baseline."""
    found: dict[str, PairedComparison] = {}
    for comparison in comparisons:
        if comparison.name not in found or "start" in comparison.relations:
            found[comparison.name] = comparison
    return found


def _deciding(data: ReportData) -> int:
    """How many comparisons of the page were corrected together."""
    told = [one.verdict for one in data.analysis.comparisons] + [one.verdict for one in data.setting_comparisons]
    return sum(verdict != "exploratory" for verdict in told)


def _failure_counts(groups: Sequence[GroupRow], rows: Mapping[str, EvaluationRow]) -> dict[str, dict[str, int]]:
    """Counts by label and setting (over its seeds), for the labels that occur, in table order."""
    counts = {
        label: {
            group.group: sum(rows[name].report.failures.get(label, 0) for name in group.members) for group in groups
        }
        for label in REASONS
    }
    return {label: by_group for label, by_group in counts.items() if any(by_group.values())}


def _published(rows: Sequence[PublishedRow]) -> dict[str, list[tuple[PublishedRow, list[str]]]]:
    """Published numbers with our evaluations beside them: the comparable ones, and the others by what differs."""
    found: dict[tuple[bool, str], tuple[PublishedRow, list[str]]] = {}
    for row in rows:
        key = (row.comparable, repr(row.model_dump(exclude={"evaluation"})))
        found.setdefault(key, (row, []))[1].append(row.evaluation)
    return {
        "comparable": [pair for (comparable, _), pair in found.items() if comparable],
        "others": [pair for (comparable, _), pair in found.items() if not comparable],
    }
