"""What a study's evaluations show: intervals, paired comparisons, and how much of a gain is format.

A verdict comes from tests over the same problems, never from two point estimates. With a strict reward

    accuracy = format_rate * accuracy_formatted

so a gain splits into a format part and a reasoning part:

    gain = (f1 - f0) * (a0 + a1) / 2  +  (a1 - a0) * (f0 + f1) / 2,   f = format_rate, a = accuracy_formatted

The second part says how right the formatted answers are, and the formatted answers of a weak start are few and
not a random choice; so the base model's plain question-answer accuracy belongs beside it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from alignment_core.records import EvalReport, Record
from alignment_core.seeding import derive_seed
from alignment_core.stage_config import Comparison
from alignment_core.statistics import holm, mcnemar_exact, paired_bootstrap, wilson_interval

Verdict = Literal["better", "worse", "cannot tell"]
Relation = Literal["start", "zero-shot"]
Outcomes = Mapping[str, tuple[bool, bool]]
"""(formatted, correct) by problem id; `evaluation.correct_by_problem` makes it."""

ALPHA = 0.05
"""Family-wise error of the verdicts."""


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


class PairedComparison(Record):
    """Two evaluations over the same problems: `name` against `against`."""

    name: str
    against: str
    relations: list[Relation]
    """What `against` is to `name`: its start, the zero-shot baseline, or both."""
    n: int
    both: int
    """Problems both solved."""
    only_name: int
    only_against: int
    neither: int
    difference: float
    """Accuracy of `name` minus that of `against`."""
    low: float
    """95 % paired bootstrap interval of the difference."""
    high: float
    p_value: float
    """Exact McNemar test, two-sided."""
    p_holm: float
    """The same, corrected for all comparisons of the analysis."""
    verdict: Verdict


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
    """Problems now solved that were unformatted before."""
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
    format_rate_mean: float
    mean_length: float
    mean_entropy: float | None


class Analysis(Record):
    """Everything the report says about the evaluations, as data."""

    evaluations: list[EvaluationRow]
    comparisons: list[PairedComparison]
    gains: list[GainSplit]
    groups: list[GroupRow]
    zero_shot: list[str]
    """Names of the zero-shot baselines."""
    plain: list[str]
    """Names of the base model's plain question-answer evaluations."""
    alpha: float
    resamples: int


class _Pair(NamedTuple):
    """A comparison to be made."""

    name: str
    against: str
    relations: list[Relation]


class _Tested(NamedTuple):
    """A comparison made, before correction."""

    pair: _Pair
    n: int
    both: int
    only_name: int
    only_against: int
    low: float
    high: float
    p_value: float


def analyze(
    evaluations: Sequence[Comparison],
    reports: Mapping[str, EvalReport],
    correct: Mapping[str, Outcomes],
    seed: int = 0,
    resamples: int = 10_000,
) -> Analysis:
    """Numbers, paired tests, gain splits and seed averages of a study; `seed` fixes the bootstrap.

    Every run is compared with its `start` and with the zero-shot baseline (of its own seed where there is one).
    Raises ValueError for repeated or missing names, for outcomes that contradict a report, and for a
    comparison of runs over different problems.
    """
    _check(evaluations, reports, correct)
    rows = [_row(evaluation, reports[evaluation.name]) for evaluation in evaluations]
    pairs = [pair for evaluation in evaluations for pair in _pairs_of(evaluation, evaluations)]
    tested = [_test(pair, correct[pair.name], correct[pair.against], seed, resamples) for pair in pairs]
    corrected = holm([result.p_value for result in tested])
    plain = [row.name for row in rows if row.method == "plain"]
    return Analysis(
        evaluations=rows,
        comparisons=[_conclude(result, p_holm) for result, p_holm in zip(tested, corrected, strict=True)],
        gains=[
            _split_gain(pair, correct[pair.name], correct[pair.against])
            for pair in pairs
            # A plain answer has no format to gain.
            if pair.name not in plain and pair.against not in plain
        ],
        groups=_groups(rows),
        zero_shot=[row.name for row in rows if row.method == "zero-shot"],
        plain=plain,
        alpha=ALPHA,
        resamples=resamples,
    )


def verdict(p_value: float, low: float, high: float) -> Verdict:
    """`better` or `worse` only if the test rejects and the interval of the difference leaves out 0."""
    if p_value >= ALPHA or low <= 0 <= high:
        return "cannot tell"
    return "better" if low > 0 else "worse"


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
        solved = sum(outcome[1] for outcome in correct[name].values())
        if reports[name].n == len(correct[name]) and reports[name].n_correct != solved:
            raise ValueError(
                f"the report of {name!r} counts {reports[name].n_correct} correct, its outcomes {solved}: "
                "they come from different gradings; grade it again"
            )


def _row(evaluation: Comparison, report: EvalReport) -> EvaluationRow:
    """The evaluation's numbers with its place in the study."""
    share, n = report.accuracy_formatted, report.n_formatted
    interval = (None, None) if share is None else wilson_interval(round(share * n), n)
    return EvaluationRow(
        **evaluation.model_dump(),
        group=group_name(evaluation.name, evaluation.seed),
        report=report,
        accuracy_formatted_low=interval[0],
        accuracy_formatted_high=interval[1],
    )


def _pairs_of(evaluation: Comparison, evaluations: Sequence[Comparison]) -> list[_Pair]:
    """With what the evaluation is compared: its start and the zero-shot baseline, once if they are the same."""
    pairs: list[_Pair] = []
    if evaluation.start is not None:
        pairs.append(_Pair(evaluation.name, evaluation.start, ["start"]))
    baseline = _baseline(evaluation, evaluations)
    if baseline == evaluation.start and pairs:
        pairs[0].relations.append("zero-shot")
    elif baseline is not None:
        pairs.append(_Pair(evaluation.name, baseline, ["zero-shot"]))
    return pairs


def _baseline(evaluation: Comparison, evaluations: Sequence[Comparison]) -> str | None:
    """The zero-shot evaluation of the same seed, else the first; None for the baselines themselves."""
    if evaluation.method in {"zero-shot", "plain"}:
        return None
    baselines = [other for other in evaluations if other.method == "zero-shot"]
    same_seed = [other for other in baselines if other.seed == evaluation.seed]
    return next((other.name for other in [*same_seed, *baselines]), None)


def _test(pair: _Pair, first: Outcomes, second: Outcomes, seed: int, resamples: int) -> _Tested:
    """Test two runs problem by problem. Raises ValueError if the problems differ."""
    if first.keys() != second.keys():
        extra, lacking = len(first.keys() - second.keys()), len(second.keys() - first.keys())
        raise ValueError(
            f"{pair.name!r} and {pair.against!r} are over different problems ({extra} only in the first, "
            f"{lacking} only in the second): evaluate both on the same split and limit"
        )
    problem_ids = sorted(first)
    a, b = ([bool(run[problem_id][1]) for problem_id in problem_ids] for run in (first, second))
    both = sum(x and y for x, y in zip(a, b, strict=True))
    only_name, only_against = sum(a) - both, sum(b) - both
    low, high = paired_bootstrap(a, b, derive_seed(seed, "bootstrap", pair.name, pair.against), resamples)
    return _Tested(pair, len(a), both, only_name, only_against, low, high, mcnemar_exact(only_name, only_against))


def _conclude(result: _Tested, p_holm: float) -> PairedComparison:
    """The comparison with its corrected p-value and verdict."""
    return PairedComparison(
        name=result.pair.name,
        against=result.pair.against,
        relations=result.pair.relations,
        n=result.n,
        both=result.both,
        only_name=result.only_name,
        only_against=result.only_against,
        neither=result.n - result.both - result.only_name - result.only_against,
        difference=(result.only_name - result.only_against) / result.n,
        low=result.low,
        high=result.high,
        p_value=result.p_value,
        p_holm=p_holm,
        verdict=verdict(p_holm, result.low, result.high),
    )


def _split_gain(pair: _Pair, after: Outcomes, before: Outcomes) -> GainSplit:
    """The gain from `before` to `after` as a format part and a reasoning part (module docstring)."""
    (f1, a1, accuracy1), (f0, a0, accuracy0) = _shares(after), _shares(before)
    # Right answers without the format break the product; so does a side without formatted answers.
    splits = a0 is not None and a1 is not None and abs(f1 * a1 - accuracy1) + abs(f0 * a0 - accuracy0) < 1e-9
    won = [before[problem_id][0] for problem_id in after if after[problem_id][1] and not before[problem_id][1]]
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
        lost=sum(bool(before[problem_id][1]) and not after[problem_id][1] for problem_id in after),
    )


def _shares(outcomes: Outcomes) -> tuple[float, float | None, float]:
    """Format rate, accuracy among formatted (None if none) and accuracy."""
    formatted = sum(bool(outcome[0]) for outcome in outcomes.values())
    right_and_formatted = sum(outcome[0] and outcome[1] for outcome in outcomes.values())
    right = sum(bool(outcome[1]) for outcome in outcomes.values())
    return formatted / len(outcomes), (right_and_formatted / formatted if formatted else None), right / len(outcomes)


def _groups(rows: Sequence[EvaluationRow]) -> list[GroupRow]:
    """Mean, lowest and highest accuracy over the seeds of each setting, in order of first appearance."""
    members: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        members.setdefault(row.group, []).append(row)
    return [_group(name, group) for name, group in members.items()]


def _group(name: str, rows: Sequence[EvaluationRow]) -> GroupRow:
    """One setting over its seeds."""
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
        format_rate_mean=sum(row.report.format_rate for row in rows) / len(rows),
        mean_length=sum(row.report.mean_length for row in rows) / len(rows),
        mean_entropy=sum(entropies) / len(entropies) if len(entropies) == len(rows) else None,
    )
