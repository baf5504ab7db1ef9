"""What a study's evaluations show: intervals, paired comparisons, and how much of a gain is format.

A verdict comes from tests over the same problems, never from two point estimates. With a strict reward

    accuracy = format_rate * accuracy_formatted

so a gain splits into a format part and a reasoning part:

    gain = (f1 - f0) * (a0 + a1) / 2  +  (a1 - a0) * (f0 + f1) / 2,   f = format_rate, a = accuracy_formatted

The second part says how right the formatted answers are, and the formatted answers of a weak start are few and
not a random choice; so the base model's plain question-answer accuracy belongs beside it.
"""

import re
from collections.abc import Container, Mapping, Sequence
from math import isfinite

from pydantic import Field

from alignment_core.comparisons import (
    ALPHA,
    Outcomes,
    Pair,
    PairedComparison,
    Relation,
    Run,
    SettingComparison,
    compare_runs,
    compare_settings,
    conclude,
    require_numbers,
)
from alignment_core.records import EvalReport, Record
from alignment_core.seed_statistics import accuracy_over_seeds
from alignment_core.stage_config import Comparison, Contrast
from alignment_core.statistics import wilson_interval

ROUND = re.compile(r"/round-\d+$")
"""What the name of an Expert Iteration round before the last has after its member's."""


class EvaluationRow(Record):
    """One evaluation with its place in the study."""

    name: str
    group: str
    """The name without its seed: repetitions of one setting share it."""
    method: str
    start: str | None
    seed: int | None
    size: int | None
    variant: str | None
    step: int | None
    report: EvalReport
    accuracy_formatted_low: float | None
    """95 % Wilson interval of the accuracy among formatted responses; None if there were none."""
    accuracy_formatted_high: float | None


class GainSplit(Record):
    """How much of a gain is format, on the problems of one paired comparison."""

    name: str
    against: str
    relations: list[Relation]
    format_rate_from: float
    format_rate_to: float
    accuracy_formatted_from: float | None
    accuracy_formatted_to: float | None
    gain: float
    format_part: float | None
    """None where no split exists: nothing formatted on one side, or right answers without the format."""
    reasoning_part: float | None
    won_unformatted: int
    """Problems now solved (of several samples: more often) that were unformatted before."""
    won_wrong: int
    """Problems now solved that were formatted and wrong before."""
    lost: int
    """Problems solved before and no longer."""


class GroupRow(Record):
    """One setting over its seeds."""

    group: str
    method: str
    size: int | None
    variant: str | None
    step: int | None
    members: list[str]
    seeds: list[int]
    accuracy_mean: float
    accuracy_min: float
    accuracy_max: float
    accuracy_low: float | None = None
    """95 % interval of the mean, over problems and seeds; over problems alone with one seed. None where the members
    are over different problems."""
    accuracy_high: float | None = None
    seed_sd: float | None = None
    """Standard deviation of the members' accuracies; None for one."""
    note: str = ""
    """What the interval leaves out, in words."""
    format_rate_mean: float
    mean_length: float
    mean_entropy: float | None


class Analysis(Record):
    """Everything the report says about the evaluations, as data."""

    evaluations: list[EvaluationRow]
    comparisons: list[PairedComparison]
    gains: list[GainSplit]
    groups: list[GroupRow]
    setting_comparisons: list[SettingComparison] = Field(default_factory=list)
    """Settings against each other over their seeds; those that decide are corrected together with `comparisons`'."""
    zero_shot: list[str]
    """Names of the zero-shot baselines."""
    plain: list[str]
    """Names of the base model's plain question-answer evaluations."""
    alpha: float
    resamples: int


def analyze(
    evaluations: Sequence[Comparison],
    reports: Mapping[str, EvalReport],
    correct: Mapping[str, Outcomes],
    seed: int = 0,
    resamples: int = 10_000,
    contrasts: Sequence[Contrast] = (),
) -> Analysis:
    """Numbers, paired tests, gain splits and seed averages of a study; `seed` fixes the bootstrap.

    Every run is compared with its `start` and with the zero-shot baseline (of its own seed where there is one);
    every setting of several seeds with the setting of its start and with the baseline; and the settings of each of
    `contrasts`.

    Verdicts are about settings, and one Holm correction goes over the comparisons that they rest on: of a setting of
    several seeds the one over its seeds, of a setting of one run that run's, and every contrast. All others are
    exploratory, without correction and verdict: the single runs among several seeds, and the rounds of Expert
    Iteration before the last.

    Raises ValueError for repeated or missing names, for outcomes that contradict a report, for numbers
    that are none (NaN), and for a comparison of runs over different problems.
    """
    _check(evaluations, reports, correct)
    rows = [_row(evaluation, reports[evaluation.name]) for evaluation in evaluations]
    members = _members(rows)
    alone = {group[0].name for group in members.values() if len(group) == 1}
    pairs = [pair for evaluation in evaluations for pair in _pairs_of(evaluation, evaluations, alone)]
    tested = [compare_runs(pair, correct[pair.name], correct[pair.against], seed, resamples) for pair in pairs]
    runs = {name: [Run(row.seed, correct[row.name]) for row in group] for name, group in members.items()}
    for pair in _setting_pairs(pairs, members, contrasts):
        tested.append(compare_settings(pair, runs[pair.name], runs[pair.against], seed, resamples))
    comparisons, setting_comparisons = conclude(tested)
    plain = [row.name for row in rows if row.method == "plain"]
    return Analysis(
        evaluations=rows,
        comparisons=comparisons,
        setting_comparisons=setting_comparisons,
        gains=[
            _split_gain(pair, correct[pair.name], correct[pair.against])
            for pair in pairs
            # A plain answer has no format to gain.
            if pair.name not in plain and pair.against not in plain
        ],
        groups=[_group(name, group, correct) for name, group in members.items()],
        zero_shot=[row.name for row in rows if row.method == "zero-shot"],
        plain=plain,
        alpha=ALPHA,
        resamples=resamples,
    )


def group_name(name: str, seed: int | None) -> str:
    """The name of an evaluation or run without its seed segment: `sft/512/raw/seed0` -> `sft/512/raw`."""
    wanted = r"\d+" if seed is None else str(seed)
    return re.sub(rf"(^|/)seed{wanted}(?=/|$)", "", name).strip("/") or name


def _check(
    evaluations: Sequence[Comparison], reports: Mapping[str, EvalReport], correct: Mapping[str, Outcomes]
) -> None:
    """Raise ValueError unless every name is there once and its parts belong together."""
    names = [evaluation.name for evaluation in evaluations]
    for evaluation in evaluations:
        name, start = evaluation.name, evaluation.start
        if names.count(name) > 1:
            raise ValueError(f"two evaluations are called {name!r}: give each a name of its own")
        if name not in reports or not correct.get(name):
            raise ValueError(f"evaluation {name!r} has no report or no outcomes: evaluate it before the analysis")
        if start is not None and start not in names:
            raise ValueError(f"evaluation {name!r} starts from {start!r}, which is not in the analysis: add it")
        _check_numbers(name, reports[name], correct[name])


def _check_numbers(name: str, report: EvalReport, outcomes: Outcomes) -> None:
    """Raise ValueError for a report with a number that is none, and for outcomes that contradict it."""
    wrong = [field for field, value in report if isinstance(value, float) and not isfinite(value)]
    if wrong:
        raise ValueError(f"{wrong[0]} of {name!r} is {getattr(report, wrong[0])}: evaluate it again")
    require_numbers({name: outcomes})
    solved = sum(outcome[1] for outcome in outcomes.values())
    per_problem = report.n / len(outcomes)
    if abs(report.n_correct - solved * per_problem) > 1e-6 * report.n:
        raise ValueError(
            f"the report of {name!r} counts {report.n_correct} correct, its outcomes {solved * per_problem:g}: "
            "they come from different gradings; grade it again"
        )


def _row(evaluation: Comparison, report: EvalReport) -> EvaluationRow:
    """The evaluation's numbers with its place in the study."""
    share, n = report.accuracy_formatted, report.n_formatted
    interval = (None, None) if share is None else wilson_interval(round(share * n), n)
    return EvaluationRow(
        **evaluation.model_dump(exclude={"experiment", "varied"}),
        group=group_name(evaluation.name, evaluation.seed),
        report=report,
        accuracy_formatted_low=interval[0],
        accuracy_formatted_high=interval[1],
    )


def _pairs_of(evaluation: Comparison, evaluations: Sequence[Comparison], alone: Container[str]) -> list[Pair]:
    """With what the evaluation is compared: its start and the zero-shot baseline, once if they are the same.

    alone: runs that are all of their setting, which decide unless they are a round before the last.
    """
    decides = evaluation.name in alone and not ROUND.search(evaluation.name)
    pairs: list[Pair] = []
    if evaluation.start is not None:
        pairs.append(Pair(evaluation.name, evaluation.start, ["start"], decides))
    baseline = _baseline(evaluation, evaluations)
    if baseline == evaluation.start and pairs:
        pairs[0].relations.append("zero-shot")
    elif baseline is not None:
        pairs.append(Pair(evaluation.name, baseline, ["zero-shot"], decides))
    return pairs


def _setting_pairs(
    pairs: Sequence[Pair], members: Mapping[str, Sequence[EvaluationRow]], contrasts: Sequence[Contrast]
) -> list[Pair]:
    """Which settings are compared: the runs' own pairs where there are several seeds, then the contrasts.

    A contrast of two settings of one run each, which are compared as runs, is no further test.
    """
    compared = {(pair.name, pair.against) for pair in pairs}
    group_of = {row.name: name for name, rows in members.items() for row in rows}
    found: dict[tuple[str, str], list[Relation]] = {}
    for pair in pairs:
        name, against = group_of[pair.name], group_of[pair.against]
        if len(members[name]) > 1 and name != against:
            known = found.setdefault((name, against), [])
            known.extend(relation for relation in pair.relations if relation not in known)
    for contrast in contrasts:
        sides = [group_of.get(side, side) for side in (contrast.name, contrast.against)]
        unknown = next((side for side in sides if side not in members), None)
        if unknown is not None or sides[0] == sides[1]:
            raise ValueError(
                f"a contrast of {contrast.name!r} with {contrast.against!r}: give two different settings of the "
                f"analysis, among {', '.join(members)}"
            )
        runs = [(own.name, other.name) for own in members[sides[0]] for other in members[sides[1]]]
        if len(runs) > 1 or not compared.issuperset(runs):
            found.setdefault((sides[0], sides[1]), []).append("contrast")
    rounds = {name for name, rows in members.items() if all(ROUND.search(row.name) for row in rows)}
    return [
        Pair(name, against, relations, name not in rounds or "contrast" in relations)
        for (name, against), relations in found.items()
    ]


def _baseline(evaluation: Comparison, evaluations: Sequence[Comparison]) -> str | None:
    """The zero-shot evaluation of the same seed, else the first; None for the baselines themselves."""
    if evaluation.method in {"zero-shot", "plain"}:
        return None
    baselines = [other for other in evaluations if other.method == "zero-shot"]
    same_seed = [other for other in baselines if other.seed == evaluation.seed]
    return next((other.name for other in [*same_seed, *baselines]), None)


def _split_gain(pair: Pair, after: Outcomes, before: Outcomes) -> GainSplit:
    """The gain from `before` to `after` as a format part and a reasoning part (module docstring)."""
    (f1, a1, accuracy1), (f0, a0, accuracy0) = _shares(after), _shares(before)
    # Right answers without the format break the product; so does a side without formatted answers.
    splits = a0 is not None and a1 is not None and abs(f1 * a1 - accuracy1) + abs(f0 * a0 - accuracy0) < 1e-9
    won = [before[problem_id][0] for problem_id in after if after[problem_id][1] > before[problem_id][1]]
    return GainSplit(
        name=pair.name,
        against=pair.against,
        relations=pair.relations,
        format_rate_from=f0,
        format_rate_to=f1,
        accuracy_formatted_from=a0,
        accuracy_formatted_to=a1,
        gain=accuracy1 - accuracy0,
        format_part=(f1 - f0) * ((a0 or 0.0) + (a1 or 0.0)) / 2 if splits else None,
        reasoning_part=((a1 or 0.0) - (a0 or 0.0)) * (f0 + f1) / 2 if splits else None,
        won_unformatted=sum(not formatted for formatted in won),
        won_wrong=sum(bool(formatted) for formatted in won),
        lost=sum(before[problem_id][1] > after[problem_id][1] for problem_id in after),
    )


def _shares(outcomes: Outcomes) -> tuple[float, float | None, float]:
    """Format rate, accuracy among formatted (None if none) and accuracy."""
    formatted = sum(outcome[0] for outcome in outcomes.values())
    # No reward accepts an answer beyond a problem's formatted share, unless it accepts unformatted ones.
    right_and_formatted = sum(min(outcome) for outcome in outcomes.values())
    right = sum(outcome[1] for outcome in outcomes.values())
    return formatted / len(outcomes), (right_and_formatted / formatted if formatted else None), right / len(outcomes)


def _members(rows: Sequence[EvaluationRow]) -> dict[str, list[EvaluationRow]]:
    """The runs of each setting, in order of first appearance."""
    members: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        members.setdefault(row.group, []).append(row)
    return members


def _group(name: str, rows: Sequence[EvaluationRow], correct: Mapping[str, Outcomes]) -> GroupRow:
    """One setting over its seeds."""
    known = [correct[row.name] for row in rows]
    alike = all(outcomes.keys() == known[0].keys() for outcomes in known)
    tables = [[float(outcomes[one][1]) for one in known[0]] for outcomes in known] if alike else []
    estimate = accuracy_over_seeds(tables) if tables else None
    accuracies = [row.report.accuracy for row in rows]
    entropies = [row.report.mean_entropy for row in rows if row.report.mean_entropy is not None]
    return GroupRow(
        group=name,
        **rows[0].model_dump(include={"method", "size", "variant", "step"}),
        members=[row.name for row in rows],
        seeds=[row.seed for row in rows if row.seed is not None],
        accuracy_mean=sum(accuracies) / len(rows),
        accuracy_min=min(accuracies),
        accuracy_max=max(accuracies),
        accuracy_low=estimate.low if estimate else None,
        accuracy_high=estimate.high if estimate else None,
        seed_sd=estimate.seed_sd if estimate else None,
        note=estimate.note if estimate else "its runs are over different problems: no interval of their mean",
        format_rate_mean=sum(row.report.format_rate for row in rows) / len(rows),
        mean_length=sum(row.report.mean_length for row in rows) / len(rows),
        mean_entropy=sum(entropies) / len(entropies) if len(entropies) == len(rows) else None,
    )
