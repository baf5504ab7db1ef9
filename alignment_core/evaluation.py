"""From graded completions to the numbers of one evaluation, and to the examples a person should look at."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite

from alignment_core.config import RewardName
from alignment_core.records import AtK, Completion, EvalReport, GradedResponse, Problem
from alignment_core.statistics import pass_at_k, powers_of_two, wilson_interval
from alignment_core.taxonomy import REASONS, failure_reason
from alignment_core.votes import Ballot, majority_share

FAILING_KINDS = ("1,0", "0,0")
"""Categories (format, answer) a person should read examples of: formatted but wrong, and unformatted."""


def evaluate(
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    grades: Sequence[GradedResponse],
    reward: RewardName = "r1_zero",
    ballots: Sequence[Ballot] = (),
) -> EvalReport:
    """The numbers of one evaluation: `grades[i]` is the verdict on `completions[i]`.

    Means of length run over responses, the mean entropy over response tokens. With several samples per problem the
    accuracy is over all of them, and its interval counts problems, not samples: samples of one problem are not
    independent; pass@k is told for k = 1, 2, 4 …, and maj@k where the `ballots` of the problems
    (`alignment_core.voting.count_votes`) are given. Raises ValueError if lengths differ, a problem has no completion
    (its denominator would shrink in silence), numbers of samples differ, a completion's problem is unknown, or a
    reward or entropy is NaN.
    """
    by_id = _matched(problems, completions, grades)
    pairs = list(zip(completions, grades, strict=True))
    right = [grade.answer_reward > 0 for grade in grades]
    formatted = [grade.format_reward > 0 for grade in grades]
    reasons = [failure_reason(by_id[completion.problem_id], completion, grade, reward) for completion, grade in pairs]
    lengths = [len(completion.response_ids) for completion in completions]
    n, n_correct, n_formatted = len(grades), sum(right), sum(formatted)
    thorough = [(grade.reward > 0, grade.fast_reward > 0) for grade in grades if grade.fast_reward is not None]
    low, high = wilson_interval(n_correct * len(problems) / n, len(problems))
    return EvalReport(
        n=n,
        n_correct=n_correct,
        n_formatted=n_formatted,
        accuracy=n_correct / n,
        accuracy_low=low,
        accuracy_high=high,
        format_rate=n_formatted / n,
        accuracy_formatted=_mean(ok for ok, form in zip(right, formatted, strict=True) if form),
        truncation_rate=sum(completion.finish_reason == "length" for completion in completions) / n,
        categories=_categories(formatted, right),
        failures=_in_table_order(Counter(reason for reason in reasons if reason is not None)),
        mean_length=sum(lengths) / n,
        mean_length_correct=_mean(length for length, ok in zip(lengths, right, strict=True) if ok),
        mean_length_incorrect=_mean(length for length, ok in zip(lengths, right, strict=True) if not ok),
        mean_entropy=_token_mean_entropy(completions),
        n_suspicious=sum(grade.suspicious for grade in grades),
        n_timeouts=sum(grade.status == "timeout" for grade in grades),
        n_errors=sum(grade.status == "error" for grade in grades),
        n_thorough_only=thorough.count((True, False)) if thorough else None,
        n_fast_only=thorough.count((False, True)) if thorough else None,
        response_tokens=sum(lengths),
        samples_per_problem=n // len(problems),
        pass_at_k=_pass_at_k(completions, right),
        maj_at_k=_maj_at_k(ballots, n // len(problems)),
        n_unmerged=sum(ballot.unmerged for ballot in ballots),
    )


def correct_by_problem(
    completions: Sequence[Completion], grades: Sequence[GradedResponse]
) -> dict[str, tuple[float, float]]:
    """(formatted, correct) shares of each problem's samples: what paired comparisons are made of."""
    verdicts: dict[str, list[tuple[bool, bool]]] = {}
    for completion, grade in zip(completions, grades, strict=True):
        verdict = (grade.format_reward > 0, grade.answer_reward > 0)
        verdicts.setdefault(completion.problem_id, []).append(verdict)
    return {problem_id: mean_verdict(samples) for problem_id, samples in verdicts.items()}


def mean_verdict(samples: Sequence[tuple[bool, bool]]) -> tuple[float, float]:
    """Shares of formatted and of correct ones among the verdicts on a problem's samples."""
    formatted, correct = zip(*samples, strict=True)
    return sum(formatted) / len(samples), sum(correct) / len(samples)


def failing_examples(
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    grades: Sequence[GradedResponse],
    per_kind: int = 10,
    reward: RewardName = "r1_zero",
) -> list[dict[str, object]]:
    """The first `per_kind` failures of each failing category, in order, with reason and blame.

    First ones, not chosen ones: a choice by reason would misrepresent how often each occurs.
    """
    by_id = _matched(problems, completions, grades)
    rows: list[dict[str, object]] = []
    for kind in FAILING_KINDS:
        members = [
            (completion, grade)
            for completion, grade in zip(completions, grades, strict=True)
            if category(grade) == kind
        ]
        rows.extend(
            _example(kind, by_id[completion.problem_id], completion, grade, reward)
            for completion, grade in members[:per_kind]
        )
    return rows


def category(grade: GradedResponse) -> str:
    """The (format, answer) category of a verdict: "1,1", "1,0", "0,0" or "0,1"."""
    return f"{int(grade.format_reward > 0)},{int(grade.answer_reward > 0)}"


def _example(
    kind: str, problem: Problem, completion: Completion, grade: GradedResponse, reward: RewardName
) -> dict[str, object]:
    """One row of `failing_examples`."""
    reason = failure_reason(problem, completion, grade, reward)
    return {
        "kind": kind,
        "problem_id": problem.id,
        "prompt": problem.prompt,
        "response": completion.text,
        "truth": problem.ground_truth,
        "extracted": grade.extracted,
        "reason": reason,
        "blame": REASONS[reason].blame if reason is not None else None,
        "finish_reason": completion.finish_reason,
    }


def _matched(
    problems: Sequence[Problem], completions: Sequence[Completion], grades: Sequence[GradedResponse]
) -> dict[str, Problem]:
    """Problems by id, once every completion has a verdict and every problem equally many completions."""
    if len(completions) != len(grades):
        raise ValueError(f"{len(completions)} completions with {len(grades)} grades: grade each completion once")
    _require_numbers(completions, grades)
    by_id = {problem.id: problem for problem in problems}
    if not by_id or len(by_id) != len(problems):
        raise ValueError(f"{len(problems)} problems with {len(by_id)} distinct ids: give at least one, each once")
    counts = Counter(completion.problem_id for completion in completions)
    unknown = next((problem_id for problem_id in counts if problem_id not in by_id), None)
    if unknown is not None:
        raise ValueError(f"a completion answers problem {unknown!r}, which is not among the problems given")
    missing = next((problem_id for problem_id in by_id if problem_id not in counts), None)
    if missing is not None:
        raise ValueError(f"problem {missing!r} has no completion: give only the problems that were sampled")
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"problems have {min(counts.values())} to {max(counts.values())} completions: sample each equally often"
        )
    return by_id


def _require_numbers(completions: Sequence[Completion], grades: Sequence[GradedResponse]) -> None:
    """Raise ValueError for a reward or an entropy that is NaN or infinite: it would count as wrong in silence."""
    for completion, grade in zip(completions, grades, strict=True):
        numbers = {
            "format_reward": grade.format_reward,
            "answer_reward": grade.answer_reward,
            "reward": grade.reward,
            "mean_entropy": completion.mean_entropy or 0.0,
        }
        wrong = next((name for name, value in numbers.items() if not isfinite(value)), None)
        if wrong is not None:
            raise ValueError(
                f"{wrong} of sample {completion.sample_index} of problem {completion.problem_id!r} is "
                f"{numbers[wrong]}: grade it again, or, if it is the entropy, sample again with a model whose logits "
                "are finite"
            )


def _pass_at_k(completions: Sequence[Completion], right: Sequence[bool]) -> list[AtK]:
    """Mean unbiased pass@k over problems; nothing to tell of problems that were sampled once."""
    counts: Counter[str] = Counter()
    for completion, ok in zip(completions, right, strict=True):
        counts[completion.problem_id] += ok
    samples = len(completions) // len(counts)
    if samples == 1:
        return []
    return [_at_k(k, [pass_at_k(samples, c, k) for c in counts.values()]) for k in powers_of_two(samples)]


def _maj_at_k(ballots: Sequence[Ballot], samples: int) -> list[AtK]:
    """Mean maj@k over problems, where they have ballots."""
    if not ballots or samples == 1:
        return []
    return [_at_k(k, [majority_share(ballot, k) for ballot in ballots]) for k in powers_of_two(samples)]


def _at_k(k: int, values: Sequence[float]) -> AtK:
    """The mean of per-problem values in [0, 1]; a sum of such is no wider spread than a count, so Wilson's holds."""
    total = min(sum(values), len(values))
    low, high = wilson_interval(total, len(values))
    return AtK(k=k, value=total / len(values), low=low, high=high)


def _categories(formatted: Sequence[bool], right: Sequence[bool]) -> dict[str, int]:
    """Counts of the three categories of a strict reward; "0,1" only where it occurs."""
    counts = Counter(f"{int(form)},{int(ok)}" for form, ok in zip(formatted, right, strict=True))
    shown = ["1,1", *FAILING_KINDS] + (["0,1"] if counts["0,1"] else [])
    return {kind: counts[kind] for kind in shown}


def _in_table_order(counts: Counter[str]) -> dict[str, int]:
    """Counts of the labels that occur, in the order of `taxonomy.REASONS`."""
    return {label: counts[label] for label in REASONS if counts[label]}


def _mean(values: Iterable[float]) -> float | None:
    """Mean, or None of nothing."""
    known = list(values)
    return sum(known) / len(known) if known else None


def _token_mean_entropy(completions: Sequence[Completion]) -> float | None:
    """Mean entropy over all response tokens (nats), of the completions that carry one."""
    known = [(c.mean_entropy, len(c.response_ids)) for c in completions if c.mean_entropy is not None]
    tokens = sum(length for _, length in known)
    return sum(entropy * length for entropy, length in known) / tokens if tokens else None
