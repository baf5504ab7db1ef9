"""Means and differences over seeds and problems: hand-worked values, coverage, refusals."""

from math import sqrt

import numpy as np
import pytest
import scipy.stats

from alignment_core.seed_statistics import ONE_SEED, accuracy_over_seeds, difference_over_seeds, spread
from alignment_core.statistics import wilson_interval


def drawn(tables: int, seeds: int, problems: int, seed_sd: float) -> np.ndarray:
    """Bernoulli answers to problems of different difficulty, by models that differ by `seed_sd` (logits)."""
    generator = np.random.default_rng(7)
    logits = 0.5 + generator.normal(0, 1.5, (tables, 1, problems)) + generator.normal(0, seed_sd, (tables, seeds, 1))
    return (generator.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)


def test_parts_of_the_variance_by_hand() -> None:
    # mean 1/2; seeds' means 3/4 and 1/4: MS_s = 4 * (1/16 + 1/16) / 1 = 1/2. Problems' means 1, 1/2, 1/2, 0:
    # MS_i = 2 * (1/4 + 1/4) / 3 = 1/3. Rest: |x - x_s - x_i + x..| = 1/4 in each of 8 cells, but signs cancel none:
    # MS_r = 8 / 16 / 3 = 1/6. So A = 1/2 / 8 and B = (1/3 - 1/6) / 8.
    parts = spread([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert parts == pytest.approx((0.5, 1 / 16, 1 / 48))


def test_a_difference_by_hand() -> None:
    zero = [[0.0] * 4]
    estimate = difference_over_seeds([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], zero)
    parts = spread([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
    half = sqrt(scipy.stats.t.ppf(0.975, 2) ** 2 * parts.by_seed + scipy.stats.norm.ppf(0.975) ** 2 * parts.by_problem)
    assert (estimate.mean, estimate.seeds, estimate.problems) == (0.5, 3, 4)
    assert (estimate.low, estimate.high) == pytest.approx((max(0.5 - half, -1), min(0.5 + half, 1)))
    assert estimate.seed_sd == pytest.approx(0.25)


def test_without_variation_between_problems_it_is_the_t_test_over_seeds() -> None:
    first, second = [[0.7] * 6, [0.5] * 6, [0.9] * 6], [[0.4] * 6, [0.4] * 6, [0.4] * 6]
    estimate = difference_over_seeds(first, second)
    reference = scipy.stats.ttest_1samp([0.3, 0.1, 0.5], 0)
    assert estimate.p_value == pytest.approx(reference.pvalue, rel=1e-6)
    interval = reference.confidence_interval()
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
def test_the_p_value_is_the_level_at_which_the_interval_reaches_zero(scale: float) -> None:
    generator = np.random.default_rng(3)
    table = generator.normal(0.05 * scale, 0.3, (3, 40)) + generator.normal(0, 0.02, (3, 1))
    estimate = difference_over_seeds(table.tolist(), np.zeros((3, 40)).tolist())
    parts = spread(table.tolist())
    level = estimate.p_value
    assert level is not None
    t, z = scipy.stats.t.isf(level / 2, 2), scipy.stats.norm.isf(level / 2)
    assert sqrt(t * t * parts.by_seed + z * z * parts.by_problem) == pytest.approx(abs(parts.mean), rel=1e-6)
    assert (level < 0.05) == (estimate.low > 0 or estimate.high < 0)


def test_both_seeds_and_problems_are_respected() -> None:
    """Nominal 95 % intervals hold the true mean in at least that; over problems or over seeds alone they do not."""
    tables = drawn(400, 3, 200, seed_sd=0.4)
    true = float(drawn(1, 4000, 500, seed_sd=0.4).mean())
    covered = problems_alone = 0
    for table in tables:
        estimate = accuracy_over_seeds(table.tolist())
        covered += estimate.low <= true <= estimate.high
        low, high = wilson_interval(float(table.mean(0).sum()), 200)
        problems_alone += low <= true <= high
    assert covered / 400 > 0.93
    assert problems_alone / 400 < 0.85


def test_equal_settings_are_rarely_told_apart() -> None:
    first, second = drawn(400, 6, 150, seed_sd=0.3).reshape(400, 2, 3, 150).swapaxes(0, 1)
    rejected = sum(
        (difference_over_seeds(a.tolist(), b.tolist()).p_value or 1) < 0.05 for a, b in zip(first, second, strict=True)
    )
    assert rejected / 400 < 0.08  # 0.05, and what 400 draws may add to it


def test_a_clear_difference_is_seen() -> None:
    table = drawn(1, 3, 500, seed_sd=0.05)[0]
    better = np.maximum(table, drawn(2, 3, 500, seed_sd=0.05)[1])
    estimate = difference_over_seeds(better.tolist(), table.tolist())
    assert estimate.p_value is not None
    assert estimate.p_value < 1e-3
    assert estimate.low > 0


def test_one_seed_is_wilsons_interval_and_says_what_it_leaves_out() -> None:
    estimate = accuracy_over_seeds([[1, 0, 1, 1]])
    assert (estimate.low, estimate.high) == wilson_interval(3, 4)
    assert (estimate.seed_sd, estimate.note) == (None, ONE_SEED)
    difference = difference_over_seeds([[1, 0, 1, 1]], [[0, 0, 1, 1]])
    assert (difference.p_value, difference.note) == (None, ONE_SEED)


def test_more_seeds_narrow_and_a_seed_more_apart_widens() -> None:
    alike = [[1, 0, 1, 1, 0, 1, 0, 0]] * 2
    apart = [[1, 0, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]]

    def width(table: list[list[int]]) -> float:
        estimate = accuracy_over_seeds(table)
        return estimate.high - estimate.low

    assert width(apart) > width(alike)
    assert accuracy_over_seeds(apart).high <= 1.0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_answers_agree_the_problems_still_limit_what_is_known(value: float) -> None:
    estimate = accuracy_over_seeds([[value] * 20] * 3)
    assert (estimate.low, estimate.high) == wilson_interval(20 * value, 20)


def test_a_difference_without_any_variation_is_a_sign_test() -> None:
    assert difference_over_seeds([[1] * 10] * 3, [[0] * 10] * 3).p_value == 2 ** (1 - 10)
    assert difference_over_seeds([[1] * 10] * 3, [[1] * 10] * 3).p_value == 1.0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([[1, 0]], [[1, 0, 1]], "same ones, in the same order"),
        ([[1, 0], [1, 1]], [[1, 0], [1, 0], [0, 1]], "same ones"),
        ([[1, 0], [1]], [[1, 0], [1, 1]], "rows of \\[1, 2\\] problems"),
        ([], [[1]], "is empty"),
        ([[1.0, float("nan")]], [[1, 0]], "holds nan at seed 0, problem 1"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(first, second, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        difference_over_seeds(first, second)


def test_an_accuracy_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(ValueError, match="give shares from 0 to 1"):
        accuracy_over_seeds([[0.5, 1.5]])
