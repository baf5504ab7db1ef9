"""Intervals and tests against hand-worked values and scipy: pytest tests/test_statistics.py"""

from itertools import combinations, product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.statistics import (
    holm,
    mcnemar_exact,
    paired_bootstrap,
    pass_at_k,
    powers_of_two,
    sign_flip_test,
    wilson_interval,
)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 500), (1, 1), (13, 500), (461, 500), (500, 500), (136, 5000)])
def test_wilson_agrees_with_scipy(k: int, n: int) -> None:
    reference = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(k, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_by_hand() -> None:
    # p = 1/2, n = 100: centre 1/2, half width z/2 / sqrt(n + z^2) = 0.979982 / sqrt(103.841459)
    assert wilson_interval(50, 100) == pytest.approx((0.5 - 0.0961689, 0.5 + 0.0961689), abs=1e-6)


def test_wilson_ends_are_exact_and_nothing_seen_is_nothing_known() -> None:
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_takes_fractional_successes() -> None:
    assert wilson_interval(49, 100)[0] < wilson_interval(49.5, 100)[0] < wilson_interval(50, 100)[0]


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= k <= n"):
        wilson_interval(k, n)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_agrees_with_scipy_and_is_symmetric(b: int, c: int) -> None:
    expected = scipy.stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(3, 3) == 1.0


def test_mcnemar_survives_numbers_beyond_floats() -> None:
    assert 0.0 <= mcnemar_exact(0, 2000) < 1e-300
    assert mcnemar_exact(990, 1010) == pytest.approx(scipy.stats.binomtest(990, 2000).pvalue)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="-1"):
        mcnemar_exact(-1, 2)


def _pair(n: int, seed: int) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng(seed)
    return (generator.random(n) < 0.6).astype(float).tolist(), (generator.random(n) < 0.5).astype(float).tolist()


def test_bootstrap_agrees_with_scipy() -> None:
    first, second = _pair(400, 1)
    reference = scipy.stats.bootstrap(
        (first, second),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert paired_bootstrap(first, second, seed=3) == pytest.approx((reference.low, reference.high), abs=0.006)


def test_bootstrap_pairs_problems() -> None:
    # Nearly the same problems solved: unpaired resampling would give a width of about 0.28 here.
    first = [1.0] * 50 + [0.0] * 50
    low, high = paired_bootstrap(first, [*first[:99], 1.0], seed=0)
    assert -0.05 < low <= high <= 0.0


def test_bootstrap_sign_is_first_minus_second() -> None:
    low, high = paired_bootstrap([1] * 9 + [0], [0] * 10, seed=0)
    assert 0 < low < 0.9 < high <= 1.0


def test_bootstrap_depends_on_its_seed_only() -> None:
    # Shares, not flags: many distinct differences, so that two seeds do not meet on the same grid point.
    first, second = np.random.default_rng(2).random((2, 50)).tolist()
    assert paired_bootstrap(first, second, seed=7) == paired_bootstrap(first, second, seed=7)
    assert paired_bootstrap(first, second, seed=7) != paired_bootstrap(first, second, seed=8)


@pytest.mark.parametrize(("a", "b"), [([1], [1, 0]), ([], [])])
def test_bootstrap_refuses_unpaired_runs(a: list[int], b: list[int]) -> None:
    with pytest.raises(ValueError, match="same ones"):
        paired_bootstrap(a, b, seed=0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"value 1 is {wrong}"):
        paired_bootstrap([1.0, wrong], [0.0, 1.0], seed=0)
    with pytest.raises(ValueError, match=f"value 1 is {wrong}"):
        sign_flip_test([1.0, wrong], seed=0)
    with pytest.raises(ValueError, match="0 <= k <= n"):
        wilson_interval(1.0, wrong)
    with pytest.raises(ValueError, match="not a p-value"):
        holm([0.1, wrong])


@pytest.mark.parametrize(("b", "c"), [(12, 1), (6, 4), (30, 12), (0, 0)])
def test_sign_flips_of_whole_differences_are_mcnemars_test(b: int, c: int) -> None:
    differences = [1.0] * b + [-1.0] * c + [0.0] * 20
    assert sign_flip_test(differences, seed=1, flips=100_000) == pytest.approx(mcnemar_exact(b, c), abs=0.006)


def test_sign_flips_agree_with_all_flips_of_a_few() -> None:
    differences = [0.5, 0.25, -0.25, 1.0, 0.75, 0.125]
    signs = np.array(list(product([-1, 1], repeat=6)))
    exact = np.mean(np.abs(signs @ differences) >= sum(differences) - 1e-9)
    assert sign_flip_test(differences, seed=0, flips=50_000) == pytest.approx(exact, abs=0.006)
    assert sign_flip_test(differences, seed=0) == sign_flip_test(differences, seed=0)


def test_powers_of_two_reach_up_to_n() -> None:
    assert [powers_of_two(n) for n in (1, 2, 7, 8)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8]]


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 2), (6, 3, 4), (4, 0, 2), (4, 4, 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n: int, c: int, k: int) -> None:
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


@given(st.integers(1, 200), st.data())
def test_pass_at_k_agrees_with_the_hypergeometric_law(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(1 - scipy.stats.hypergeom.pmf(0, n, c, k), abs=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)])
def test_pass_at_k_refuses_the_impossible(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(n, c, k)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, then the running maximum
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_lies_between_the_raw_value_and_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p_values))


def test_holm_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        holm([0.1, 1.5])
