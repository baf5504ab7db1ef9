"""How stages read each other's problems; apart from `artifacts`, so that stages without a model need no torch."""

from pathlib import Path

from alignment_core.config import Split
from alignment_core.records import Problem, read_jsonl


def read_split(problems: Path, split: Split) -> list[Problem]:
    """The problems of one split."""
    return read_jsonl(problems / f"{split}.jsonl", Problem)


def of_subset(problems: list[Problem], subset: str | None) -> list[Problem]:
    """Those of MATH-500, or all; ValueError if MATH-500 is asked for and no problem is marked as of it."""
    if subset is None:
        return problems
    marked = [one for one in problems if one.meta.get("in_math500") is True]
    if not marked:
        raise ValueError(
            "evaluation.subset is math500, and no problem of the split says in_math500: give data.test rows with "
            "that field, or a file of MATH-500 and no subset"
        )
    return marked
