"""The statistics of a comparison, from scipy; what scipy lacks (Holm, Nemenyi) is here."""

import dataclasses
import math

import numpy as np
from scipy import stats

LEVEL = 0.95
FEWEST = 3
"""Values of which an interval of their mean is given: two say almost nothing of their spread."""

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with the interval that holds it at the level of 95 %.

    Attributes:
        mean: of the values.
        low, high: its bounds; NaN where there are too few values.
    """

    mean: float
    low: float
    high: float

    def within(self, lowest: float, highest: float) -> "Interval":
        """The interval without what lies beyond the values that are possible."""
        low, high = (float(np.clip(end, lowest, highest)) for end in (self.low, self.high))
        return Interval(self.mean, low, high)


def t_interval(values: np.ndarray) -> Interval:
    """Student's interval of a mean; for at least `FEWEST` values that are independent and about
    normal."""
    if len(values) < FEWEST:
        return Interval(float(np.mean(values)), math.nan, math.nan)
    mean, error = np.mean(values), stats.sem(values)
    if error == 0:
        return Interval(float(mean), float(mean), float(mean))
    low, high = stats.t.interval(LEVEL, len(values) - 1, loc=mean, scale=error)
    return Interval(float(mean), float(low), float(high))


def bootstrap_interval(differences: np.ndarray, seed: int = 0) -> Interval:
    """Percentile interval of the mean of paired differences, resampled by pairs."""
    mean = float(np.mean(differences))
    if np.ptp(differences) == 0:
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 10_000_000 // len(differences)),
        confidence_level=LEVEL,
        method="percentile",
        rng=seed,
    )
    low, high = found.confidence_interval
    return Interval(mean, float(low), float(high))


def mcnemar(differences: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test on paired differences of correctness.

    Of the pairs that differ, half should favour either side. With several seeds a pair is a clip
    and its difference the mean over seeds, of which the sign counts.
    """
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    if better + worse == 0:
        return 1.0
    return float(stats.binomtest(better, better + worse).pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction: adjusted p-values that control the chance of any false alarm
    (Holm, Scand. J. Statist. 6, 1979)."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p_values[order]))
    return adjusted


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Average ranks of methods over blocks (Demsar, JMLR 7, 2006).

    Attributes:
        average: of each method; 1 is best, ties share theirs.
        p_value: Friedman's, that all methods are alike.
        critical_difference: Nemenyi's; average ranks that are nearer differ by chance.
        blocks: N.
    """

    average: np.ndarray
    p_value: float
    critical_difference: float
    blocks: int


def rank(scores: np.ndarray) -> Ranks:
    """Ranks of methods from scores [blocks, methods], higher better.

    Raises:
        ValueError: fewer than three methods or two blocks.
    """
    blocks, methods = scores.shape
    if blocks < 2 or methods < 3:
        raise ValueError(f"ranks need two blocks and three methods, not {blocks} and {methods}")
    average = stats.rankdata(-scores, axis=1).mean(axis=0)
    p_value = 1.0 if np.ptp(average) == 0 else stats.friedmanchisquare(*scores.T).pvalue
    return Ranks(average, float(p_value), critical_difference(methods, blocks), blocks)


def critical_difference(methods: int, blocks: int) -> float:
    """Nemenyi's critical difference of average ranks at the level of 95 %."""
    q = stats.studentized_range.ppf(LEVEL, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * blocks)))


def cliques(average: np.ndarray, difference: float) -> list[tuple[int, int]]:
    """Groups of neighbours in the order of ranks that do not differ: first and last position.

    Args:
        average: average ranks, sorted.
        difference: the critical difference.
    """
    found: list[tuple[int, int]] = []
    for first in range(len(average)):
        last = int(np.searchsorted(average, average[first] + difference, side="right")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
