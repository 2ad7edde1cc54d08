"""How many experts of each mixture the cache should hold (arXiv:2408.10284)."""

import math
from collections.abc import Sequence


def expected_loads(
    slots: int, experts: int, active: Sequence[float], accuracy: float, room: int = 1
) -> float:
    """Expected number of loads for which a visit waits at a mixture: f(t).

    A visit is what comes at once: a clip, or in the paper, which generates text, a token. Its
    experts are assumed to be any k of N, of which t are in the cache. If m of them are not, a
    prefetched expert is one of these with probability beta, so the visit waits for m - beta loads
    (with one prefetched expert). For k of 1 or 2 this is the paper's
    `p (1 - t/N)(1 - b) + (1 - p)[P_2 (2 (1 - b) + b) + P_1 (1 - b)]`.

    Args:
        slots: t.
        experts: N.
        active: probability that a visit uses 0, 1, 2, ... experts.
        accuracy: beta, probability that a prefetched expert is needed.
        room: experts that are prefetched.
    """
    outside, total = experts - slots, 0.0
    for count, probability in enumerate(active):
        for missing in range(1, min(count, outside) + 1):
            ways = math.comb(outside, missing) * math.comb(slots, count - missing)
            total += (
                probability
                * ways
                / math.comb(experts, count)
                * (missing - accuracy * min(missing, room))
            )
    return total


def allocate(curves: Sequence[Sequence[float]], budget: int) -> list[int]:
    """The slots of each mixture with the fewest expected loads in all, by dynamic programming.

    Of equal optima, it returns the one that gives fewer slots to the first mixtures.

    Args:
        curves: f(0), ..., f(N) of each mixture.
        budget: slots in all; those in excess of all experts are left over.
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
    """The same number of slots for every mixture; a remainder goes to the first ones.

    Args:
        sizes: N of each mixture.
        budget: slots in all; those in excess of all experts are left over.
    """
    slots = [0] * len(sizes)
    left = min(budget, sum(sizes))
    while left:
        for number, size in enumerate(sizes):
            if left and slots[number] < size:
                slots[number] += 1
                left -= 1
    return slots
