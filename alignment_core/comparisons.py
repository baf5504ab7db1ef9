"""Paired comparisons over the same problems: run against run, and setting against setting over their seeds.

A verdict comes from a test and an interval together, never from two point estimates. Holm's correction goes over the
comparisons of an analysis that decide (`analysis.analyze` says which); the others are exploratory and get no verdict.
Two runs are compared problem by problem (exact McNemar test; a sign-flip test where
problems were sampled several times), two settings by problem and seed (`alignment_core.seed_statistics`).
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Literal, NamedTuple

from alignment_core.records import Record
from alignment_core.seed_statistics import difference_over_seeds
from alignment_core.seeding import derive_seed
from alignment_core.statistics import holm, mcnemar_exact, paired_bootstrap, sign_flip_test

Verdict = Literal["better", "worse", "cannot tell", "exploratory"]
"""`exploratory`: a comparison that decides nothing, whose p-value is not corrected."""
Relation = Literal["start", "zero-shot", "contrast"]
Test = Literal["mcnemar", "sign_flip", "seeds_and_problems"]
Outcomes = Mapping[str, tuple[float, float]]
"""(formatted, correct) shares by problem id, 0 or 1 where it was sampled once; `evaluation.correct_by_problem`."""

ALPHA = 0.05
"""Family-wise error of the verdicts."""


class PairedComparison(Record):
    """Two evaluations over the same problems: `name` against `against`."""

    name: str
    against: str
    relations: list[Relation]
    """What `against` is to `name`: its start, the zero-shot baseline, or both; or a contrast that was asked for."""
    n: int
    both: int
    """Problems both solved."""
    only_name: int
    """Problems `name` solved and `against` did not; of problems sampled several times, those it solved more often."""
    only_against: int
    neither: int
    difference: float
    """Accuracy of `name` minus that of `against`."""
    low: float
    """95 % paired bootstrap interval of the difference."""
    high: float
    p_value: float
    """Two-sided, of `test`."""
    p_holm: float | None
    """The same, corrected for all comparisons of the analysis that decide; None for an exploratory one."""
    verdict: Verdict
    test: Test = "mcnemar"


class SettingComparison(Record):
    """Two settings (an evaluation's name without its seed) over the same problems, by all seeds that both have."""

    name: str
    against: str
    relations: list[Relation]
    seeds: list[int]
    """Seeds that were paired; empty where a setting has none."""
    left_out: list[int]
    """Seeds that only one of the settings has; not used."""
    n: int
    """Problems."""
    difference: float
    """Mean accuracy of `name` minus that of `against` over those seeds."""
    low: float
    """95 % interval over problems and seeds; over problems alone with one seed."""
    high: float
    seed_sd: float | None
    """Standard deviation of the difference between seeds; None for one seed."""
    p_value: float
    p_holm: float | None
    verdict: Verdict
    test: Test
    note: str = ""
    """What limits the verdict, in words."""


class Pair(NamedTuple):
    """A comparison to be made."""

    name: str
    against: str
    relations: list[Relation]
    decides: bool = True
    """Whether it gets a verdict, and so counts in the correction."""


class Tested(NamedTuple):
    """A comparison made, before correction: the fields of its record but `p_holm` and `verdict`."""

    kind: type[PairedComparison] | type[SettingComparison]
    fields: dict[str, object]
    low: float
    high: float
    p_value: float
    decides: bool


class Run(NamedTuple):
    """One evaluation of a setting."""

    seed: int | None
    outcomes: Outcomes


def verdict(p_value: float, low: float, high: float) -> Verdict:
    """`better` or `worse` only if the test rejects and the interval of the difference leaves out 0."""
    if not p_value < ALPHA or not (low > 0 or high < 0):
        return "cannot tell"
    return "better" if low > 0 else "worse"


def conclude(tested: Sequence[Tested]) -> tuple[list[PairedComparison], list[SettingComparison]]:
    """The comparisons of one analysis with their verdicts: one Holm correction over those that decide."""
    runs: list[PairedComparison] = []
    settings: list[SettingComparison] = []
    corrected = iter(holm([one.p_value for one in tested if one.decides]))
    for result in tested:
        p_holm = next(corrected) if result.decides else None
        said = "exploratory" if p_holm is None else verdict(p_holm, result.low, result.high)
        ends = {"low": result.low, "high": result.high, "p_value": result.p_value, "p_holm": p_holm}
        told = {**result.fields, **ends, "verdict": said}
        if result.kind is PairedComparison:
            runs.append(PairedComparison.model_validate(told))
        else:
            settings.append(SettingComparison.model_validate(told))
    return runs, settings


def compare_runs(pair: Pair, first: Outcomes, second: Outcomes, seed: int, resamples: int) -> Tested:
    """Test two runs problem by problem. Raises ValueError if the problems differ or a share is not a number."""
    problem_ids = same_problems({pair.name: first, pair.against: second})
    a, b = ([float(run[problem_id][1]) for problem_id in problem_ids] for run in (first, second))
    differences = [x - y for x, y in zip(a, b, strict=True)]
    only_name, only_against = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    low, high = paired_bootstrap(a, b, derive_seed(seed, "bootstrap", pair.name, pair.against), resamples)
    both = sum(x == y > 0 for x, y in zip(a, b, strict=True))
    whole = all(value in {0.0, 1.0} for value in (*a, *b))
    flips = derive_seed(seed, "sign_flip", pair.name, pair.against)
    fields: dict[str, object] = {
        **_named(pair),
        "n": len(a),
        "both": both,
        "only_name": only_name,
        "only_against": only_against,
        "neither": len(a) - both - only_name - only_against,
        "difference": sum(differences) / len(a),
        "test": "mcnemar" if whole else "sign_flip",
    }
    p_value = mcnemar_exact(only_name, only_against) if whole else sign_flip_test(differences, flips, resamples)
    return Tested(PairedComparison, fields, low, high, p_value, pair.decides)


def compare_settings(pair: Pair, first: Sequence[Run], second: Sequence[Run], seed: int, resamples: int) -> Tested:
    """Test two settings over the seeds both have; a setting of one run without a seed stands beside every seed.

    Raises ValueError if the runs are over different problems, or share no seed.
    """
    ones, others, seeds, left_out = _paired(pair, first, second)
    names = {f"{pair.name} ({index})": run.outcomes for index, run in enumerate(ones)}
    problem_ids = same_problems(names | {f"{pair.against} ({i})": run.outcomes for i, run in enumerate(others)})
    a, b = ([[float(run.outcomes[one][1]) for one in problem_ids] for run in runs] for runs in (ones, others))
    estimate = difference_over_seeds(a, b)
    fields: dict[str, object] = {
        **_named(pair),
        "seeds": seeds,
        "left_out": left_out,
        "n": estimate.problems,
        "difference": estimate.mean,
        "seed_sd": estimate.seed_sd,
        "test": "seeds_and_problems",
        "note": _note(estimate.note, left_out),
    }
    if estimate.p_value is not None:
        return Tested(SettingComparison, fields, estimate.low, estimate.high, estimate.p_value, pair.decides)
    single = compare_runs(pair, ones[0].outcomes, others[0].outcomes, seed, resamples)
    fields["test"] = single.fields["test"]
    return Tested(SettingComparison, fields, single.low, single.high, single.p_value, pair.decides)


def same_problems(runs: Mapping[str, Outcomes]) -> list[str]:
    """The problem ids all runs have, in order.

    Raises ValueError, naming two runs, if they are over different problems, or if an outcome is not a number.
    """
    (name, first), *others = runs.items()
    for other, outcomes in others:
        if first.keys() != outcomes.keys():
            extra, lacking = len(first.keys() - outcomes.keys()), len(outcomes.keys() - first.keys())
            raise ValueError(
                f"{name!r} and {other!r} are over different problems ({extra} only in the first, "
                f"{lacking} only in the second): evaluate both on the same split and limit"
            )
    require_numbers(runs)
    return sorted(first)


def require_numbers(runs: Mapping[str, Outcomes]) -> None:
    """Raise ValueError, naming run and problem, unless every outcome is a share from 0 to 1; NaN is none."""
    for name, outcomes in runs.items():
        for problem_id, shares in outcomes.items():
            if not all(isfinite(share) and 0 <= share <= 1 for share in shares):
                raise ValueError(
                    f"{name!r} has the outcome {tuple(shares)} on problem {problem_id!r}, which is no share from 0 to "
                    "1: grade that run again"
                )


def _paired(
    pair: Pair, first: Sequence[Run], second: Sequence[Run]
) -> tuple[list[Run], list[Run], list[int], list[int]]:
    """Runs side by side (the second may be one for all), the seeds paired and those left out."""
    if len(second) == 1 and second[0].seed is None:
        return list(first), list(second), [run.seed for run in first if run.seed is not None], []
    by_seed, other = {run.seed: run for run in first}, {run.seed: run for run in second}
    seeds = [seed for seed in by_seed if seed in other]
    if not seeds:
        raise ValueError(
            f"{pair.name!r} and {pair.against!r} share no seed ({sorted(map(str, by_seed))} and "
            f"{sorted(map(str, other))}): run both with the same seeds"
        )
    left_out = sorted(seed for seed in by_seed.keys() ^ other.keys() if seed is not None)
    return [by_seed[s] for s in seeds], [other[s] for s in seeds], [s for s in seeds if s is not None], left_out


def _named(pair: Pair) -> dict[str, object]:
    """What a comparison is between, as fields of its record."""
    return {"name": pair.name, "against": pair.against, "relations": pair.relations}


def _note(note: str, left_out: Sequence[int]) -> str:
    """What limits a comparison of settings."""
    parts = [note] if note else []
    if left_out:
        parts.append(f"seeds {', '.join(map(str, left_out))} of only one setting are left out")
    return "; ".join(parts)
