"""Uncertainty of accuracies: intervals, paired tests, pass@k. Small formulas over math.comb and numpy.

An accuracy is a share of n problems, so it has a Wilson interval; two runs over the same problems are
compared problem by problem (exact McNemar test, or a sign-flip test where problems have shares; paired bootstrap);
many comparisons are corrected (Holm). What several seeds say together is in `alignment_core.seed_statistics`.
"""

from collections.abc import Sequence
from math import comb, isfinite, sqrt

import numpy as np

Z_95 = 1.959963984540054
"""Standard normal quantile at 0.975."""


def wilson_interval(k: float, n: float) -> tuple[float, float]:
    """95 % score interval of a share with k successes in n trials (Wilson 1927).

    centre = (p + z²/2n) / (1 + z²/n), half width = z / (1 + z²/n) * sqrt(p(1-p)/n + z²/4n²), p = k/n.
    With n = 0 nothing is known: (0, 1). `k` may be a fraction, the sum of n per-problem shares, and n an effective
    number of trials. Raises ValueError unless 0 <= k <= n, both finite.
    """
    if not (0 <= k <= n and isfinite(n)):
        raise ValueError(f"{k} successes in {n} trials: give 0 <= k <= n")
    if n == 0:
        return 0.0, 1.0
    share, square = k / n, Z_95**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z_95 / (1 + square / n) * sqrt(share * (1 - share) / n + square / (4 * n * n))
    # At the ends the formula gives 0 and 1 up to rounding; say so exactly.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact McNemar p-value: b problems only the first run solved, c only the second.

    Under no difference b ~ Binomial(b + c, 1/2): p = min(1, 2 * P(X <= min(b, c))); 1 without discordant pairs.
    Raises ValueError for negative counts.
    """
    if b < 0 or c < 0:
        raise ValueError(f"discordant counts {b} and {c}: give numbers of problems, not differences")
    tail = sum(comb(b + c, i) for i in range(min(b, c) + 1))
    outcomes = 1 << (b + c)
    return min(1.0, 2 * tail / outcomes)


def paired_bootstrap(
    correct_a: Sequence[float], correct_b: Sequence[float], seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """95 % percentile interval of mean(a) - mean(b) over the same problems, resampled in pairs.

    The mean of a resample depends only on how often each distinct difference occurs, so those counts are
    drawn (multinomial), which is the same distribution at a fraction of the cost.
    Raises ValueError for unequal lengths, no problem at all, or a value that is not finite.
    """
    if len(correct_a) != len(correct_b) or not len(correct_a):
        raise ValueError(
            f"paired runs of {len(correct_a)} and {len(correct_b)} problems: give both over the same ones, at least one"
        )
    differences = np.asarray(correct_a, dtype=float) - np.asarray(correct_b, dtype=float)
    _require_finite(differences)
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.quantile(drawn @ values / n, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_test(differences: Sequence[float], seed: int, flips: int = 10_000) -> float:
    """Two-sided p-value of paired differences whose signs are a matter of chance if there is no effect.

    |sum(s_i d_i)| over random signs s_i is compared with |sum(d_i)|: p = (1 + #(at least as large)) / (1 + flips), so
    never below 1 / (1 + flips); 1 where every difference is 0. With differences of -1, 0 and 1 it is McNemar's test,
    estimated (Fisher 1935; Phipson and Smyth 2010, doi:10.2202/1544-6115.1585, for the two ones).
    Raises ValueError for a value that is not finite.
    """
    values = np.asarray(differences, dtype=float)
    _require_finite(values)
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    generator = np.random.default_rng(seed)
    # Of m equal sizes only the number of positive signs counts, a binomial draw.
    sums = sum(
        size * (2 * generator.binomial(count, 0.5, flips) - count) for size, count in zip(sizes, counts, strict=True)
    )
    reached = int(np.count_nonzero(np.abs(sums) >= abs(values.sum()) - 1e-9))
    return (1 + reached) / (1 + flips)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that k samples hold a correct one, from c correct of n: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, arXiv:2107.03374, equation 1. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(
            f"pass@{k} from {c} correct of {n}: give 0 <= c <= n and 1 <= k <= n; sample more for a larger k"
        )
    return 1.0 - comb(n - c, k) / comb(n, k)


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4 … up to n: the k at which pass@k and maj@k are told."""
    return [1 << bit for bit in range(n.bit_length())]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given: they control the family-wise error.

    Sorted ascending, the i-th of m (from 0) becomes max over j <= i of min(1, (m - j) * p_j).
    Raises ValueError for a value outside [0, 1].
    """
    wrong = [p for p in p_values if not 0 <= p <= 1]
    if wrong:
        raise ValueError(f"{wrong[0]} is not a p-value: give numbers from 0 to 1")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _require_finite(values: "np.ndarray") -> None:
    """Raise ValueError naming the first value that is NaN or infinite."""
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(f"value {wrong[0]} is {values[wrong[0]]}, not a number to compare: grade that run again")
