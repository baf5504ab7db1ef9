"""How stages read each other's problems; apart from `artifacts`, so that stages without a model need no torch."""

from pathlib import Path

from alignment_core.config import Split
from alignment_core.records import Problem, read_jsonl


def read_split(problems: Path, split: Split) -> list[Problem]:
    """The problems of one split."""
    return read_jsonl(problems / f"{split}.jsonl", Problem)
