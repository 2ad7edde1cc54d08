"""Simulate a cache on a device with given speeds, as events on one channel and one processor."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from .cache import LRUCache, prefetch_nearest, total_counts


class Visit(NamedTuple):
    """A clip at a mixture.

    Attributes:
        needed: experts that it uses.
        guessed: for each of the next mixtures, experts to prefetch, the likeliest first.
    """

    needed: list[int]
    guessed: list[list[int]]


class Clip(NamedTuple):
    """A clip on its way through the backbone.

    Attributes:
        first: experts of the first mixture to prefetch, the likeliest first.
        visits: to the mixtures, in order.
    """

    first: list[int]
    visits: list[Visit]

    def guessed(self, number: int) -> list[int]:
        """What was guessed for a mixture in front of it: at the one before, or at the entrance."""
        if number == 0:
            return self.first
        before = self.visits[number - 1].guessed
        return before[0] if before else []


class Channel:
    """Carries one expert at a time, in the order of the requests.

    Args:
        time: time for one expert.
    """

    def __init__(self, time: float) -> None:
        self.time, self.free = time, 0.0

    def carry(self, asked: float, expert: int) -> float:
        """The time at which an expert arrives that is requested at the time `asked`."""
        self.free = max(self.free, asked) + self.time
        return self.free


def simulate(
    trace: Sequence[Clip],
    slots: Sequence[int],
    load: float,
    room: int = 1,
    block: float = 1.0,
    expert: float = 0.1,
) -> dict[str, float]:
    """Run clips one after the other.

    The experts that a mixture lacks are loaded first, then those prefetched for a later mixture.

    Args:
        trace: the clips.
        slots: slots of each mixture's cache.
        load: time to load one expert over the channel, in any unit.
        room: experts in the spare buffer of each mixture.
        block: time of the computation in front of each mixture.
        expert: time to compute one expert.

    Returns:
        time: from the first clip to the last.
        stalls: the part of it spent waiting for experts.
        hits, misses, prefetched, used: the counts of `LRUCache`.
    """
    caches: list[LRUCache[float]] = [LRUCache(number, room) for number in slots]  # arrival times
    channel, clock, stalls = Channel(load), 0.0, 0.0
    for clip in trace:
        caches[0].prefetch(clip.first, partial(channel.carry, clock))
        for number, visit in enumerate(clip.visits):
            clock += block
            bring = partial(channel.carry, clock)
            for _, arrival in caches[number].access(visit.needed, bring):
                stalls += max(arrival - clock, 0.0)
                clock = max(arrival, clock) + expert
            following = zip(caches[number + 1 :], visit.guessed, strict=False)
            prefetch_nearest((cache, wanted, bring) for cache, wanted in following)
    return {"time": clock, "stalls": stalls, **total_counts(caches)}


def measured_loads(trace: Sequence[Clip], number: int, experts: int, room: int) -> list[float]:
    """Loads per clip for which mixture `number` waits, with 0, ..., E slots.

    Args:
        trace: the clips; what was guessed for a mixture more than one ahead is not considered.
        number: of the mixture.
        experts: E.
        room: experts in its spare buffer.
    """
    loads = []
    for slots in range(experts + 1):
        cache: LRUCache[int] = LRUCache(slots, room)
        for clip in trace:
            cache.prefetch(clip.guessed(number), int)
            for _ in cache.access(clip.visits[number].needed, int):
                pass
        loads.append(cache.counts["misses"] / len(trace))
    return loads
