"""What each experiment of a study answers: its members over seeds, verdicts against their start and the first listed.

Nothing is concluded here that the analysis has not tested: a member is called better only where a comparison says so.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignment_core.analysis import ROUND, Analysis, EvaluationRow
from alignment_core.choosing import Choice
from alignment_core.comparisons import PairedComparison
from alignment_core.report_data import Interval, ReportData, SettingVerdict
from alignment_core.report_text import percent, setting_name, setting_value, words
from alignment_core.stage_config import ExperimentOutline, MemberOutline

BASELINES = ("zero-shot", "plain")


class Versus(NamedTuple):
    """A member against another setting."""

    against: str
    verdict: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    note: str = ""
    test: str | None = None
    """What `p` is of."""


@dataclass(frozen=True)
class MemberAnswer:
    """One member of an experiment over its seeds."""

    group: str
    label: str
    """Its name without the experiment's."""
    varied: dict[str, str]
    """Column -> value as text."""
    rows: list[EvaluationRow]
    """Its evaluations, one per seed; empty if there is none yet."""
    interval: Interval | None
    versus_start: Versus | None
    versus_first: Versus | None
    versus_named: list[Versus]
    """Against members of other experiments."""
    chosen: bool
    missing: list[int]
    """Seeds without an evaluation."""

    @property
    def accuracy(self) -> float | None:
        """Mean over seeds."""
        return _mean(row.report.accuracy for row in self.rows)

    @property
    def format_rate(self) -> float | None:
        """Mean over seeds."""
        return _mean(row.report.format_rate for row in self.rows)

    @property
    def length(self) -> float | None:
        """Mean response tokens over seeds."""
        return _mean(row.report.mean_length for row in self.rows)

    @property
    def truncated(self) -> float | None:
        """Mean share of responses cut at the token limit."""
        return _mean(row.report.truncation_rate for row in self.rows)


@dataclass(frozen=True)
class ExperimentAnswer:
    """One experiment with what came out of it."""

    outline: ExperimentOutline
    columns: dict[str, str]
    """Dotted name of each varied setting -> its words."""
    members: list[MemberAnswer]
    starts: list[EvaluationRow]
    """Evaluations of what the members began from."""
    choice: Choice | None
    anchor: str
    """Id of its place on the page."""
    failures: dict[str, str]
    """Which of its members failed, and why."""

    @property
    def done(self) -> list[MemberAnswer]:
        """Members with at least one evaluation."""
        return [member for member in self.members if member.rows]

    @property
    def missing(self) -> list[str]:
        """Names of the runs that have no evaluation although they were asked for."""
        if not self.outline.asked:
            return []
        return [f"{member.group}/seed{seed}" for member in self.members for seed in member.missing]


def answers(data: ReportData) -> list[ExperimentAnswer]:
    """Every experiment in the study's order; of data without outlines, one per kind of run."""
    finals = [row for row in data.analysis.evaluations if row.name == ROUND.sub("", row.name)]
    places = experiments_of(data)
    outlines = data.experiments or _outlines_of(data, finals, places)
    by_experiment = {
        outline.name: [row for row in finals if places.get(row.name) == outline.name] for outline in outlines
    }
    anchors = _anchors([outline.name for outline in outlines])
    return [
        _answer(data, outline, by_experiment[outline.name], anchor)
        for outline, anchor in zip(outlines, anchors, strict=True)
    ]


def _anchors(names: Sequence[str]) -> list[str]:
    """An id for each name; names that differ only in other signs than letters and digits get a number."""
    plain = [re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() for name in names]
    return [
        f"experiment-{name}-{place}" if plain.count(name) > 1 else f"experiment-{name}"
        for place, name in enumerate(plain)
    ]


def experiments_of(data: ReportData) -> dict[str, str]:
    """Evaluation -> its experiment, or the first part of its name where it does not say; baselines have none."""
    told = {one.name: one.experiment for one in data.evaluations}
    return {
        row.name: told.get(row.name) or row.name.split("/")[0]
        for row in data.analysis.evaluations
        if told.get(row.name) or row.method not in BASELINES
    }


def _outlines_of(data: ReportData, rows: Sequence[EvaluationRow], places: Mapping[str, str]) -> list[ExperimentOutline]:
    """Outlines as far as evaluations tell them."""
    varied = {one.name: one.varied for one in data.evaluations}
    found: dict[str, dict[str, EvaluationRow]] = {}
    for row in rows:
        if row.name in places:
            found.setdefault(places[row.name], {}).setdefault(row.group, row)
    return [
        ExperimentOutline(
            name=name,
            method=next(iter(groups.values())).method,
            members=tuple(MemberOutline(group=group, varied=varied.get(row.name, {})) for group, row in groups.items()),
        )
        for name, groups in found.items()
    ]


def _answer(
    data: ReportData, outline: ExperimentOutline, rows: Sequence[EvaluationRow], anchor: str
) -> ExperimentAnswer:
    columns = {name: setting_name(name) for member in outline.members for name in member.varied}
    if len(set(columns.values())) < len(columns):  # two settings of one last name are told in full
        columns = {name: words(name) for name in columns}
    choice = data.choices.get(outline.name)
    first = next((one.group for one in outline.members if any(row.group == one.group for row in rows)), None)
    members = [_member(data, outline, one, rows, first, choice) for one in outline.members]
    by_name = {row.name: row for row in data.analysis.evaluations}
    starts = dict.fromkeys(row.start for row in rows if row.start in by_name)
    began = [by_name[name] for name in starts if name]
    own = {outline.name, *(f"{member.group}/seed{seed}" for member in members for seed in outline.seeds)}
    failures = {name: why for name, why in data.failures.items() if name in own}
    return ExperimentAnswer(outline, columns, members, began, choice, anchor, failures)


def _member(
    data: ReportData,
    outline: ExperimentOutline,
    member: MemberOutline,
    rows: Sequence[EvaluationRow],
    first: str | None,
    choice: Choice | None,
) -> MemberAnswer:
    own = [row for row in rows if row.group == member.group]
    versus_start = _versus_start(data, member.group, own)
    told = [first, versus_start.against if versus_start else None]
    return MemberAnswer(
        group=member.group,
        label=re.sub(r"(?<=\d)e-0(?=\d)", "e-", member.group.removeprefix(f"{outline.name}/")),
        varied={name: setting_value(value) for name, value in member.varied.items()},
        rows=own,
        interval=_interval(data, member.group, own),
        versus_start=versus_start,
        versus_first=_versus_first(data, member.group, own, first),
        versus_named=_versus_named(data, outline, member.group, own, told),
        chosen=choice is not None and choice.winner == member.group,
        missing=[seed for seed in outline.seeds if seed not in {row.seed for row in own}],
    )


def _interval(data: ReportData, group: str, rows: Sequence[EvaluationRow]) -> Interval | None:
    """The analysis's interval of the mean; of a single run its own; None where nobody worked one out."""
    if group in data.intervals:
        return data.intervals[group]
    if len(rows) == 1:
        report = rows[0].report
        return Interval(low=report.accuracy_low, high=report.accuracy_high)
    return None


def _versus_start(data: ReportData, group: str, rows: Sequence[EvaluationRow]) -> Versus | None:
    starts = {row.name: row.group for row in data.analysis.evaluations}
    against = next((starts[row.start] for row in rows if row.start in starts), None)
    if against is None:
        return None
    found = _setting_verdict(data.setting_comparisons, group, against)
    if found is not None:
        return found
    pairs = [_pair(data.analysis, row.name, row.start) for row in rows if row.start is not None]
    return _by_seed(against, [pair for pair in pairs if pair is not None])


def _versus_first(data: ReportData, group: str, rows: Sequence[EvaluationRow], first: str | None) -> Versus | None:
    if first is None or group == first or not rows:
        return None
    return _versus(data, group, first, rows)


def _versus_named(
    data: ReportData, outline: ExperimentOutline, group: str, rows: Sequence[EvaluationRow], told: Sequence[str | None]
) -> list[Versus]:
    """Against the members that the experiment names, those left out that another column tells of."""
    named = [data.choices[name].winner if name in data.choices else name for name in outline.against]
    found = (_versus(data, group, name, rows) for name in named if name not in told)
    return [one for one in found if one is not None]


def _versus(data: ReportData, group: str, against: str, rows: Sequence[EvaluationRow]) -> Versus | None:
    """The verdict over seeds; of two settings of one seed each, that of their runs."""
    found = _setting_verdict(data.setting_comparisons, group, against)
    if found is not None:
        return found
    others = [row.name for row in data.analysis.evaluations if row.group == against]
    pairs = [_pair(data.analysis, row.name, other) for row in rows for other in others]
    return _by_seed(against, [pair for pair in pairs if pair is not None])


def _setting_verdict(comparisons: Sequence[SettingVerdict], name: str, against: str) -> Versus | None:
    for one in comparisons:
        if (one.name, one.against) == (name, against):
            return Versus(against, one.verdict, one.difference, one.low, one.high, one.p_holm, one.note, one.test)
    return None


def _pair(analysis: Analysis, name: str, against: str) -> PairedComparison | None:
    """The comparison of two runs, unless it is exploratory: nothing is concluded from that."""
    deciding = (one for one in analysis.comparisons if one.verdict != "exploratory")
    return next((one for one in deciding if (one.name, one.against) == (name, against)), None)


def _by_seed(against: str, pairs: Sequence[PairedComparison]) -> Versus | None:
    """What the runs' own comparisons come to: one verdict only where all seeds agree.

    Several decide only in analyses of older versions, which knew nothing over seeds.
    """
    if not pairs:
        return None
    if len(pairs) == 1:
        one = pairs[0]
        return Versus(against, one.verdict, one.difference, one.low, one.high, one.p_holm, test=one.test)
    counts = {kind: sum(pair.verdict == kind for pair in pairs) for kind in ("better", "worse", "cannot tell")}
    agreed = next((kind for kind, count in counts.items() if count == len(pairs)), "cannot tell")
    note = "each seed by itself: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    difference = sum(pair.difference for pair in pairs) / len(pairs)
    return Versus(against, agreed, difference, None, None, None, note)


def conclusions(answer: ExperimentAnswer) -> list[str]:
    """What the experiment says, in sentences: of its start, its first member, and the choice."""
    said = [*_against_start(answer), *_against_first(answer), *_against_named(answer)]
    if answer.choice is not None:
        said.append(_of_choice(answer.choice, answer.outline.name))
    if answer.missing:
        said.append(f"Not done: {_listed(answer.missing)}.")
    return [*said, *(f"{name} failed: {why}." for name, why in answer.failures.items())]


def _against_start(answer: ExperimentAnswer) -> list[str]:
    verdicts = {member.label: member.versus_start.verdict for member in answer.done if member.versus_start}
    if not verdicts:
        return [] if answer.done or not answer.outline.asked else ["No member has been evaluated."]
    against = {member.versus_start.against for member in answer.done if member.versus_start}
    start = next(iter(against)) if len(against) == 1 else "its start"
    return [f"Against {start}: {_told(verdicts)}."]


def _against_first(answer: ExperimentAnswer) -> list[str]:
    verdicts = {member.label: member.versus_first.verdict for member in answer.done if member.versus_first}
    if verdicts:
        return [f"Against {answer.done[0].label}, the first listed: {_told(verdicts)}."]
    if len(answer.done) > 1 and answer.choice is None:
        return ["Its members were not tested against each other: their intervals alone are no verdict."]
    return []


def _against_named(answer: ExperimentAnswer) -> list[str]:
    found: dict[str, dict[str, str]] = {}
    for member in answer.done:
        for versus in member.versus_named:
            found.setdefault(versus.against, {})[member.label] = versus.verdict
    return [f"Against {against}: {_told(verdicts)}." for against, verdicts in found.items()]


def _of_choice(choice: Choice, name: str) -> str:
    rule = {"best": "the highest mean accuracy", "significant": "the first listed unless another is clearly better"}
    won = next(one for one in choice.candidates if one.group == choice.winner)
    if won == choice.candidates[0]:
        how = "it is the first listed, and none was taken before it"
    elif choice.clear():
        how = "clear: its lead over the first listed is beyond chance"
    else:
        how = "not clear: chance alone could explain its lead over the first listed"
    label = choice.winner.removeprefix(f"{name}/")
    return (
        f"Taken on: {label}, by {rule[choice.rule]} on {choice.problems:,} dev problems "
        f"({percent(won.accuracy)} %); {how}."
    )


def _told(verdicts: Mapping[str, str]) -> str:
    """Verdicts by kind: `better: a, b; cannot tell: c`; all alike in one word."""
    kinds = {
        kind: [name for name, said in verdicts.items() if said == kind] for kind in dict.fromkeys(verdicts.values())
    }
    if len(kinds) == 1:
        kind = next(iter(kinds))
        return kind if len(verdicts) == 1 else f"{kind}, all {len(verdicts)} of them"
    return "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items())


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None
