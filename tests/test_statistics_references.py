"""Our statistics beside statsmodels': pytest tests/test_statistics_references.py"""

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from alignment_core.seed_statistics import spread
from alignment_core.statistics import holm, mcnemar_exact, wilson_interval


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 20), (136, 5000), (1319, 1319)])
def test_wilson(k: int, n: int) -> None:
    assert wilson_interval(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)


@pytest.mark.parametrize(("b", "c"), [(1, 5), (12, 30), (140, 101), (3, 3)])
def test_mcnemar(b: int, c: int) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(mcnemar([[50, b], [c, 70]], exact=True).pvalue, rel=1e-9)


def test_holm() -> None:
    p_values = np.random.default_rng(0).random(30) ** 3
    assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_variance_of_a_mean_over_seeds_and_problems(seeds: int) -> None:
    table = np.random.default_rng(seeds).random((seeds, 12)) + np.arange(12) / 6
    rows = [{"x": table[s, i], "seed": str(s), "problem": str(i)} for s in range(seeds) for i in range(12)]
    squares = anova_lm(ols("x ~ C(seed) + C(problem)", pd.DataFrame(rows)).fit())["mean_sq"]
    parts = spread(table.tolist())
    assert parts.mean == pytest.approx(table.mean())
    assert parts.by_seed == pytest.approx(squares["C(seed)"] / table.size)
    assert parts.by_problem == pytest.approx((squares["C(problem)"] - squares["Residual"]) / table.size)
