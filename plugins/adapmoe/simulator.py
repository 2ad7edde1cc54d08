"""Simulate a cache on a device with given speeds, as events on one channel and one processor."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from .cache import LRUCache, total_counts


class Visit(NamedTuple):
    """A clip at a mixture.

    Attributes:
        needed: experts that it uses.
        guessed: experts of the next mixture to prefetch, the likeliest first.
    """

    needed: list[int]
    guessed: list[int]


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
    trace: Sequence[Sequence[Visit]],
    slots: Sequence[int],
    load: float,
    prefetch: bool,
    block: float = 1.0,
    expert: float = 0.1,
) -> dict[str, float]:
    """Run clips one after the other.

    The experts that a mixture lacks are loaded first, then those prefetched for the next mixture.

    Args:
        trace: for each clip, its visits to the mixtures in order.
        slots: slots of each mixture's cache.
        load: time to load one expert over the channel, in any unit.
        prefetch: whether guessed experts are loaded.
        block: time of the computation in front of each mixture.
        expert: time to compute one expert.

    Returns:
        time: from the first clip to the last.
        stalls: the part of it spent waiting for experts.
        hits, misses, prefetched, used: the counts of `LRUCache`.
    """
    caches: list[LRUCache[float]] = [LRUCache(number) for number in slots]  # of arrival times
    channel, clock, stalls = Channel(load), 0.0, 0.0
    for clip in trace:
        for number, visit in enumerate(clip):
            clock += block
            bring = partial(channel.carry, clock)
            for _, arrival in caches[number].access(visit.needed, bring):
                stalls += max(arrival - clock, 0.0)
                clock = max(arrival, clock) + expert
            if prefetch and number + 1 < len(clip):
                caches[number + 1].prefetch(visit.guessed, bring)
    return {"time": clock, "stalls": stalls, **total_counts(caches)}
