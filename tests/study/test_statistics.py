"""The statistics of a comparison against formulas, tables and simulations."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.study.report.statistics import (
    bootstrap_interval,
    cliques,
    critical_difference,
    holm,
    mcnemar,
    rank,
    t_interval,
)


def test_t_interval_by_the_table() -> None:
    """Five values: t of four degrees of freedom at 97.5 % is 2.776."""
    values = np.array([70.0, 72.0, 74.0, 76.0, 78.0])
    error = math.sqrt(10 / 5)
    found = t_interval(values)
    assert found.mean == 74
    assert found.low == pytest.approx(74 - 2.776445 * error, abs=1e-5)
    assert found.high == pytest.approx(74 + 2.776445 * error, abs=1e-5)


def test_t_interval_of_few_or_equal_values() -> None:
    """One value or two have no interval; equal values have one of no width."""
    for few in ([3.0], [3.0, 3.0], [50.0, 84.0]):
        found = t_interval(np.array(few))
        assert found.mean == np.mean(few) and math.isnan(found.low) and math.isnan(found.high)
    same = t_interval(np.array([3.0, 3.0, 3.0]))
    assert (same.low, same.high) == (3, 3)


def test_an_interval_holds_nothing_impossible() -> None:
    """Shares end at 0 and 100 %; missing bounds stay missing."""
    found = t_interval(np.array([40.0, 70.0, 98.0])).within(0, 100)
    assert (found.low, found.high) == (0, 100) or 0 <= found.low < found.mean < found.high <= 100
    assert found.high == 100 and found.mean == pytest.approx(208 / 3)
    assert math.isnan(t_interval(np.array([50.0, 84.0])).within(0, 100).low)


def test_t_interval_holds_the_mean_in_95_of_100_samples() -> None:
    """Coverage over 4,000 normal samples of ten; the tolerance is four standard errors."""
    rng = np.random.default_rng(0)
    found = [t_interval(sample) for sample in rng.normal(2.0, 3.0, (4000, 10))]
    share = np.mean([one.low <= 2 <= one.high for one in found])
    assert share == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


def test_bootstrap_interval_against_resampling_by_hand() -> None:
    """Percentiles of the means of resampled pairs."""
    rng = np.random.default_rng(1)
    values = rng.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.6, 0.3])
    means = values[rng.integers(0, 200, (20_000, 200))].mean(axis=1)
    found = bootstrap_interval(values)
    assert found.mean == values.mean()
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert bootstrap_interval(values) == found  # seeded


def test_bootstrap_interval_of_equal_differences() -> None:
    """No width, and no warning."""
    found = bootstrap_interval(np.zeros(8))
    assert (found.mean, found.low, found.high) == (0, 0, 0)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=14))
@settings(max_examples=60, deadline=None)
def test_mcnemar_against_all_ways_to_draw_signs(differences: list[float]) -> None:
    """The share of the 2^n equally likely signs that is at least as lopsided."""
    values = np.array(differences)
    changed = int((values != 0).sum())
    better = int((values > 0).sum())
    far = abs(better - changed / 2)
    outcomes = itertools.product((0, 1), repeat=changed)
    share = sum(abs(sum(signs) - changed / 2) >= far for signs in outcomes) / 2**changed
    assert mcnemar(values) == pytest.approx(share)


def test_holm_by_hand() -> None:
    """Factors 4, 3, 2, 1 in the order of p; never falling; at most 1."""
    adjusted = holm(np.array([0.01, 0.04, 0.03, 0.5]))
    assert adjusted == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    """Holm's own words: go through p in order until one exceeds level / (number left)."""
    level, values = 0.05, np.array(p_values)
    rejected: set[int] = set()
    for place, index in enumerate(np.argsort(values, kind="stable")):
        if values[index] * (len(values) - place) > level:
            break
        rejected.add(int(index))
    found = {i for i, p in enumerate(holm(values)) if p <= level}
    assert found == rejected


@pytest.mark.parametrize(
    ("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)]
)
def test_critical_difference_by_demsars_table(methods: int, q: float) -> None:
    """Demsar (JMLR 7, 2006), Table 5a: q of Nemenyi's test at 0.05."""
    expected = q * math.sqrt(methods * (methods + 1) / (6 * 12))
    assert critical_difference(methods, 12) == pytest.approx(expected, rel=1e-3)


def test_ranks_by_hand_and_friedmans_formula() -> None:
    """Three blocks, three methods, no tie: chi^2 = 12 N / (k (k + 1)) (sum R^2) - 3 N (k + 1)."""
    scores = np.array([[90.0, 80.0, 70.0], [85.0, 86.0, 60.0], [95.0, 91.0, 90.0]])
    found = rank(scores)
    assert found.average == pytest.approx([4 / 3, 5 / 3, 3])
    statistic = 12 * 3 / (3 * 4) * float((found.average**2).sum()) - 3 * 3 * 4
    assert found.p_value == pytest.approx(math.exp(-statistic / 2))  # chi^2 with 2 degrees
    assert found.blocks == 3


def test_ranks_share_ties_and_need_enough() -> None:
    """Equal scores share the mean of their ranks."""
    assert rank(np.array([[5.0, 5.0, 1.0], [5.0, 5.0, 1.0]])).average.tolist() == [1.5, 1.5, 3]
    assert rank(np.ones((4, 3))).p_value == 1
    with pytest.raises(ValueError, match="three methods"):
        rank(np.ones((4, 2)))


@given(st.lists(st.floats(1, 9), min_size=2, max_size=9), st.floats(0.1, 4))
@settings(max_examples=80, deadline=None)
def test_cliques_are_the_maximal_groups(ranks: list[float], difference: float) -> None:
    """By trying all groups of neighbours."""
    average = np.sort(np.array(ranks))
    near = [
        (a, b)
        for a in range(len(average))
        for b in range(a + 1, len(average))
        if average[b] <= average[a] + difference
    ]
    maximal = [
        (a, b) for a, b in near if not any(c <= a and b <= d and (a, b) != (c, d) for c, d in near)
    ]
    assert cliques(average, difference) == maximal
