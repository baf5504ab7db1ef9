"""Questions that occur more than once, across splits or within one, at stated normalisations."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice

from pydantic import JsonValue

from alignment_core.records import Problem

LISTED = 200
"""Pairs named in the report per normalisation; all are counted."""

Place = tuple[str, str]
"""Split name and problem id."""


def exact(text: str) -> str:
    """The text as it is."""
    return text


def whitespace(text: str) -> str:
    """Runs of white space become one space; none at the ends."""
    return " ".join(text.split())


def case_and_space_free(text: str) -> str:
    """No white space at all, case folded."""
    return "".join(text.split()).casefold()


NORMALISATIONS: tuple[Callable[[str], str], ...] = (exact, whitespace, case_and_space_free)
"""From strict to loose: each finds what the one before finds, and more."""


def report(splits: Mapping[str, Sequence[Problem]]) -> dict[str, JsonValue]:
    """Per normalisation: pairs of equal questions `across` splits and `within` one, and the first pairs across.

    A pair is {left, left_split, right, right_split}, by problem id. Counts are of unordered pairs.
    """
    return {normalise.__name__: _count(splits, normalise) for normalise in NORMALISATIONS}


def _count(splits: Mapping[str, Sequence[Problem]], normalise: Callable[[str], str]) -> JsonValue:
    places: dict[str, list[Place]] = defaultdict(list)
    for name, problems in splits.items():
        for problem in problems:
            places[normalise(problem.question)].append((name, problem.id))
    repeated = [group for group in places.values() if len(group) > 1]
    total = sum(_pairs(len(group)) for group in repeated)
    within = sum(_pairs(sum(place[0] == name for place in group)) for group in repeated for name in splits)
    pairs: list[JsonValue] = [
        {"left": left[1], "left_split": left[0], "right": right[1], "right_split": right[0]}
        for left, right in islice(_across(repeated), LISTED)
    ]
    return {"across": total - within, "within": within, "pairs": pairs}


def _pairs(n: int) -> int:
    return n * (n - 1) // 2


def _across(groups: Iterable[Sequence[Place]]) -> Iterator[tuple[Place, Place]]:
    for group in groups:
        yield from ((left, right) for left, right in combinations(group, 2) if left[0] != right[0])


def held_out_questions(*splits: Sequence[Problem]) -> dict[str, str]:
    """Normalised question (the loosest way) -> problem id, over splits that no training text may touch."""
    return {case_and_space_free(problem.question): problem.id for split in splits for problem in split}
