"""Which member of an experiment is taken on, by a stated rule over dev problems, averaged over seeds."""

from collections.abc import Mapping, Sequence
from typing import Literal

from alignment_core.records import Record
from alignment_core.seeding import derive_seed
from alignment_core.statistics import paired_bootstrap

Correct = Mapping[str, float]
"""Share of each problem's samples that were right, by id."""


class Candidate(Record):
    """One member over its seeds."""

    group: str
    accuracy: float
    """Mean over seeds, on dev problems."""
    low: float
    """95 % paired bootstrap interval of its accuracy minus that of the first listed."""
    high: float


class Choice(Record):
    """The winner, and what the choice rests on."""

    winner: str
    rule: Literal["best", "significant"]
    problems: int
    candidates: list[Candidate]

    def clear(self) -> bool:
        """Whether the winner is the first listed, or beats it beyond chance (at 95 %, uncorrected)."""
        won = next(one for one in self.candidates if one.group == self.winner)
        return won == self.candidates[0] or won.low > 0


def choose(
    outcomes: Mapping[str, Sequence[Correct]], rule: Literal["best", "significant"], resamples: int = 10_000
) -> Choice:
    """The winner among groups, given each one's outcomes by seed; of equals the first listed.

    Raises ValueError for no group, a group without outcomes, or different problems.
    """
    if not outcomes or not all(outcomes.values()):
        raise ValueError("nothing to choose from: every candidate needs an evaluation of dev problems")
    problems = sorted(next(iter(outcomes.values()))[0])
    if any(sorted(one) != problems for seeds in outcomes.values() for one in seeds):
        raise ValueError("the candidates were evaluated on different problems: use one data section for all")
    shares = {
        group: [sum(one[name] for one in seeds) / len(seeds) for name in problems] for group, seeds in outcomes.items()
    }
    first = next(iter(shares.values()))
    candidates = [
        Candidate(group=group, accuracy=sum(values) / len(problems), low=interval[0], high=interval[1])
        for group, values in shares.items()
        for interval in [paired_bootstrap(values, first, derive_seed(0, "choice", group), resamples)]
    ]
    eligible = [one for one in candidates[1:] if rule == "best" or one.low > 0]
    winner = max([candidates[0], *eligible], key=lambda one: one.accuracy)
    return Choice(winner=winner.group, rule=rule, problems=len(problems), candidates=candidates)
