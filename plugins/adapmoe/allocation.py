"""How many experts of each mixture the cache shall hold (arXiv:2408.10284)."""

import math
from collections.abc import Sequence


def expected_loads(slots: int, experts: int, active: Sequence[float], accuracy: float) -> float:
    """Loads that one token waits for at a mixture, expected: f(t).

    A token's experts are taken to be any k of N, t of which are in the cache; m of them are not,
    and a right prefetch has brought one of these. So a token waits for m - beta loads if m > 0. For
    k of 1 or 2 this is the paper's
    `p (1 - t/N)(1 - b) + (1 - p)[P_2 (2 (1 - b) + b) + P_1 (1 - b)]`.

    Args:
        slots: t.
        experts: N.
        active: probability that a token has 0, 1, 2, ... experts.
        accuracy: beta, probability that what is prefetched is right.
    """
    outside, total = experts - slots, 0.0
    for count, probability in enumerate(active):
        for missing in range(1, min(count, outside) + 1):
            ways = math.comb(outside, missing) * math.comb(slots, count - missing)
            total += probability * ways / math.comb(experts, count) * (missing - accuracy)
    return total


def allocate(curves: Sequence[Sequence[float]], budget: int) -> list[int]:
    """Slots of each mixture with the least sum of expected loads, by dynamic programming.

    Of equal optima, the one that gives fewer slots to the first mixtures.

    Args:
        curves: f(0), ..., f(N) of each mixture.
        budget: slots in all; what is more than all experts is left over.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for curve in curves:
        grown: dict[int, tuple[float, tuple[int, ...]]] = {}
        for spent, (loads, chosen) in best.items():
            for slots, own in enumerate(curve[: budget - spent + 1]):
                candidate = (loads + own, (*chosen, slots))
                if spent + slots not in grown or candidate < grown[spent + slots]:
                    grown[spent + slots] = candidate
        best = grown
    return list(best[max(best)][1])


def uniform(sizes: Sequence[int], budget: int) -> list[int]:
    """As many slots for every mixture; what is left over goes to the first ones.

    Args:
        sizes: N of each mixture.
        budget: slots in all; what is more than all experts is left over.
    """
    slots = [0] * len(sizes)
    left = min(budget, sum(sizes))
    while left:
        for number, size in enumerate(sizes):
            if left and slots[number] < size:
                slots[number] += 1
                left -= 1
    return slots
