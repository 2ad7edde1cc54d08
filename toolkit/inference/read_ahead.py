"""Clips are read in threads, piece by piece, while what was read before is being computed."""

import functools
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import torch

from toolkit import system
from toolkit.errors import DataError

T = TypeVar("T")


class Piece(NamedTuple, Generic[T]):
    """Some of what is read of a clip.

    Attributes:
        items: in order.
        error: why nothing more can be read of the clip.
        last: whether the clip ends here.
    """

    items: list[T]
    error: DataError | None
    last: bool


def read_ahead(clips: Iterable[Iterator[T]], size: int) -> Iterator[Piece[T]]:
    """What is read of some clips, one clip after the other.

    One thread per core reads, at most two pieces per core are kept, and one thread at a time reads
    of a clip. So it takes little memory, whatever the length and the number of the clips.

    Args:
        clips: for each clip, what is read of it.
        size: the most items in a piece.
    """
    cores = system.cores()
    threads = torch.get_num_threads()
    left = iter(clips)
    waiting: deque[tuple[Iterator[T], Future[Piece[T]]]] = deque()
    with ThreadPoolExecutor(cores, initializer=functools.partial(torch.set_num_threads, 1)) as pool:
        try:
            while True:
                for clip in itertools.islice(left, 2 * cores - len(waiting)):
                    waiting.append((clip, pool.submit(_read, clip, size)))
                if not waiting:
                    return
                clip, future = waiting.popleft()
                piece = future.result()
                if not piece.last:
                    waiting.appendleft((clip, pool.submit(_read, clip, size)))
                yield piece
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # of the threads that start from now on


def _read(clip: Iterator[T], size: int) -> Piece[T]:
    items: list[T] = []
    try:
        items.extend(itertools.islice(clip, size))
    except DataError as error:
        return Piece(items, error, last=True)
    return Piece(items, None, last=len(items) < size)
