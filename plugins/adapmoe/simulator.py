"""What a cache would do on a device of given speeds: events on one channel and one processor."""

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
    """Carries one expert at a time, in the order in which they are asked for.

    Args:
        time: that one takes.
    """

    def __init__(self, time: float) -> None:
        self.time, self.free = time, 0.0

    def carry(self, asked: float, expert: int) -> float:
        """When an expert arrives that is asked for at some time."""
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

    First those experts come that a mixture lacks when the clip is there, then those that are
    prefetched for the next mixture.

    Args:
        trace: clips; of each, its visits to the mixtures in order.
        slots: of each mixture's cache.
        load: time of one expert over the channel, in any unit.
        prefetch: whether guesses are followed.
        block: time of what is computed in front of each mixture.
        expert: time of computing one expert.

    Returns:
        time: from the first clip to the last.
        stalls: of that, waiting for experts.
        hits, misses, prefetched, used: see `LRUCache`.
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
