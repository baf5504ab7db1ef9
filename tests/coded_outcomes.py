"""Outcomes and reports from a letter per problem, for the tests of analyses."""

from alignment_core.records import EvalReport
from alignment_core.statistics import wilson_interval

Outcomes = dict[str, tuple[bool, bool]]


def outcomes_of(codes: str) -> Outcomes:
    """One problem per letter: c correct, w formatted but wrong, u unformatted, x right without the format."""
    kinds = {"c": (True, True), "w": (True, False), "u": (False, False), "x": (False, True)}
    return {f"p{i}": kinds[code] for i, code in enumerate(codes)}


def report_of(outcomes: Outcomes, **more: object) -> EvalReport:
    n = len(outcomes)
    formatted = [correct for form, correct in outcomes.values() if form]
    right = sum(correct for _, correct in outcomes.values())
    low, high = wilson_interval(right, n)
    fields: dict[str, object] = {
        "n": n,
        "n_correct": right,
        "n_formatted": len(formatted),
        "accuracy": right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "format_rate": len(formatted) / n,
        "accuracy_formatted": sum(formatted) / len(formatted) if formatted else None,
        "truncation_rate": 0.0,
        "categories": {},
        "failures": {},
        "mean_length": 30.0,
        "mean_length_correct": None,
        "mean_length_incorrect": None,
        "mean_entropy": 0.5,
        "n_suspicious": 0,
        "n_timeouts": 0,
        "response_tokens": 30 * n,
    }
    return EvalReport.model_validate(fields | more)
