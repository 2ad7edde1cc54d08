"""The integer programme of PMQ: how many bits each expert of a block gets.

MC (arXiv:2410.06270, section 3.2): minimise `sum_ij cost_ij x_ij` over binary x, with one width per
expert, a fixed sum of bits, and some widths used at least once. It is solved exactly by dynamic
programming over (bits spent, required widths seen).
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction

from toolkit.errors import ConfigError

State = tuple[int, frozenset[int]]
"""Bits spent so far, and the required widths among them."""


def allocate(
    costs: Sequence[Sequence[float]],
    widths: Sequence[int],
    budget: int,
    required: Iterable[int] = (),
    exact: bool = True,
) -> list[int]:
    """The widths of a block's experts at the lowest total cost.

    Costs are summed exactly (as integers over a common power of two), so ties are exact. Of equal
    optima it returns the one with fewer bits, then the one with smaller widths, compared from the
    first expert on.

    Args:
        costs: [n][len(widths)], cost of expert i at width j; finite, not negative.
        widths: bits to choose from.
        budget: bits of all experts together.
        required: widths that at least one expert must have.
        exact: use the whole budget; else at most the budget.

    Raises:
        ConfigError: no choice of widths meets the budget.
    """
    needed = frozenset(required)
    integers = _as_integers(costs)
    best: dict[State, tuple[int, tuple[int, ...]]] = {(0, frozenset()): (0, ())}
    for row in integers:
        grown: dict[State, tuple[int, tuple[int, ...]]] = {}
        for (spent, seen), (cost, chosen) in best.items():
            for width, extra in zip(widths, row, strict=True):
                state = (spent + width, seen | ({width} & needed))
                candidate = (cost + extra, (*chosen, width))
                if state[0] <= budget and (state not in grown or candidate < grown[state]):
                    grown[state] = candidate
        best = grown
    ends = [
        (cost, spent, chosen)
        for (spent, seen), (cost, chosen) in best.items()
        if seen == needed and (spent == budget or not exact)
    ]
    if not ends:
        raise ConfigError(_infeasible(len(costs), widths, budget, needed))
    return list(min(ends)[2])


def block_budgets(avg_bits: float, sizes: Sequence[int]) -> list[int]:
    """Bits of each block: n k, where a fractional rest passes on to the next block.

    So the average over the model is met to within half a bit if n k is not a whole number.

    Args:
        avg_bits: k, bits per expert.
        sizes: n of each block.
    """
    average = Fraction(avg_bits).limit_denominator(10**6)
    budgets, experts, spent = [], 0, 0
    for size in sizes:
        experts += size
        budgets.append(_rounded(average * experts) - spent)
        spent += budgets[-1]
    return budgets


def _rounded(value: Fraction) -> int:
    """To the nearest whole number, halves up."""
    return int(value + Fraction(1, 2))


def _as_integers(costs: Sequence[Sequence[float]]) -> list[list[int]]:
    """Floats as integers over their common denominator (all denominators are powers of two)."""
    ratios = [[float(cost).as_integer_ratio() for cost in row] for row in costs]
    common = max((below for row in ratios for _, below in row), default=1)
    return [[above * (common // below) for above, below in row] for row in ratios]


def _infeasible(experts: int, widths: Sequence[int], budget: int, needed: frozenset[int]) -> str:
    free = experts - len(needed)
    if free < 0:
        return (
            f"the {experts} expert(s) of a mixture cannot have all of the widths {sorted(needed)} "
            "that each mixture must use: name fewer, or none, in `force_widths`"
        )
    low, high = (sum(needed) + free * end for end in (min(widths), max(widths)))
    return (
        f"no choice of the widths {sorted(widths)} with {sorted(needed)} among them gives "
        f"{experts} experts {budget} bits in all: set `avg_bits` between {low / experts:.4g} and "
        f"{high / experts:.4g}, or other `bits` or `force_widths`"
    )
