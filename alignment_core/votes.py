"""maj@k: how often the answer that most of k samples give is right, from the votes of n >= k samples.

Answers that are equivalent are one vote (`alignment_core.voting` finds out); a response without an answer has none.
As pass@k is, maj@k is averaged over all C(n, k) choices of k samples out of n, exactly, so it does not hang on which
samples came first. Of answers with equally many votes the first drawn wins: over all orders of the samples that is each
of them equally often. Without any vote the problem is not solved. The majority's verdict is that of a member drawn
from it, since equivalence and the verdict may come from different tests. maj@1 is the accuracy.

Majority voting: Wang et al. 2022, arXiv:2203.11171; as maj1@k: Lewkowycz et al. 2022, arXiv:2206.14858, section 3.
"""

from collections import Counter
from fractions import Fraction
from functools import lru_cache
from math import comb
from typing import NamedTuple


class Ballot(NamedTuple):
    """The votes on one problem."""

    votes: tuple[tuple[int, int], ...]
    """Per distinct answer: (samples that gave it, right ones among them)."""
    silent: int = 0
    """Samples without an answer."""
    unmerged: int = 0
    """Answers that were left to vote for themselves alone, since a limit was hit."""


def majority_share(ballot: Ballot, k: int) -> float:
    """Chance that the majority of k of the samples is right, over all choices of k.

    Raises ValueError unless 1 <= k <= the number of samples.
    """
    samples = sum(size for size, _ in ballot.votes) + ballot.silent
    if not 1 <= k <= samples:
        raise ValueError(f"maj@{k} from {samples} samples: give 1 <= k <= {samples}, or sample more")
    sizes = Counter(size for size, _ in ballot.votes)
    share = 0.0
    for size, right in ballot.votes:
        if right:
            rivals = tuple(sorted((sizes - Counter([size])).items()))
            share += _wins(size, rivals, ballot.silent, k) * right / size
    return min(share, 1.0)


@lru_cache(maxsize=65_536)
def _wins(size: int, rivals: tuple[tuple[int, int], ...], silent: int, k: int) -> float:
    """Chance that an answer of `size` votes wins among `rivals` ((size, how many) each), by k of all samples.

    With j votes for it, choose the other k - j so that no rival has more than j; with t rivals at j it wins one time
    in t + 1.
    """
    samples = size + silent + sum(votes * count for votes, count in rivals)
    won = Fraction(0)
    for j in range(1, min(size, k) + 1):
        free = silent + sum(votes * count for votes, count in rivals if votes < j)  # these can never have j votes
        ways = {(taken, 0): comb(free, taken) for taken in range(min(free, k - j) + 1)}
        for votes, count in rivals:
            if votes >= j:
                ways = _chosen(ways, votes, j, count, k - j)
        by_ties: Counter[int] = Counter()
        for (taken, ties), number in ways.items():
            by_ties[ties] += number if taken == k - j else 0
        won += comb(size, j) * sum((Fraction(number, ties + 1) for ties, number in by_ties.items()), Fraction(0))
    return float(won / comb(samples, k))


def _chosen(
    ways: dict[tuple[int, int], int], votes: int, most: int, count: int, room: int
) -> dict[tuple[int, int], int]:
    """Numbers of choices by (samples taken, rivals at `most`), after `count` rivals of `votes` samples more."""
    for _ in range(count):
        after: Counter[tuple[int, int]] = Counter()
        for (taken, ties), number in ways.items():
            for chosen in range(min(most, room - taken) + 1):
                after[taken + chosen, ties + (chosen == most)] += number * comb(votes, chosen)
        ways = after
    return ways
