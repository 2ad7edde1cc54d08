"""Clips are read ahead: in order, a few at a time, and threads end with the iterator."""

import threading
from collections.abc import Iterator

import pytest
import torch

from toolkit import system
from toolkit.errors import DataError
from toolkit.inference.read_ahead import Piece, read_ahead


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "cores", lambda: 2)


def clip(number: int, length: int, error: Exception | None = None) -> Iterator[tuple[int, int]]:
    """Items that say whose they are, and an error behind them."""
    for place in range(length):
        yield number, place
    if error is not None:
        raise error


def readers() -> int:
    """How many threads read."""
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pieces_come_in_the_order_of_the_clips(size: int) -> None:
    lengths = [5, 0, 1, 3, 2, 0, 7, 4, 6, 1]
    pieces = list(read_ahead((clip(n, length) for n, length in enumerate(lengths)), size))
    expected = [(n, place) for n, length in enumerate(lengths) for place in range(length)]
    assert [item for piece in pieces for item in piece.items] == expected
    assert sum(piece.last for piece in pieces) == len(lengths)
    assert all(len(piece.items) <= size for piece in pieces)


def test_a_clip_that_cannot_be_read_ends_alone() -> None:
    broken = DataError("broken")
    pieces = list(read_ahead([clip(0, 1), clip(1, 3, broken), clip(2, 1)], 2))
    assert pieces == [
        Piece([(0, 0)], None, last=True),
        Piece([(1, 0), (1, 1)], None, last=False),
        Piece([(1, 2)], broken, last=True),
        Piece([(2, 0)], None, last=True),
    ]


@pytest.mark.parametrize("of_the_clips", [False, True])
def test_other_errors_end_all(of_the_clips: bool) -> None:
    def clips() -> Iterator[Iterator[tuple[int, int]]]:
        yield clip(0, 1)
        if of_the_clips:
            raise KeyError("mine")
        yield clip(1, 1, KeyError("mine"))

    with pytest.raises(KeyError, match="mine"):
        list(read_ahead(clips(), 2))
    assert readers() == 0


def test_few_clips_are_taken_ahead() -> None:
    taken: list[int] = []

    def clips() -> Iterator[Iterator[tuple[int, int]]]:
        for number in range(100):
            taken.append(number)
            yield clip(number, 1)

    pieces = read_ahead(clips(), 2)
    for read in range(1, 10):
        next(pieces)
        assert len(taken) <= read + 2 * system.cores()
    pieces.close()  # type: ignore[attr-defined]


def test_threads_end_with_an_iterator_that_is_left() -> None:
    before = torch.get_num_threads()
    pieces = read_ahead((clip(number, 10) for number in range(100)), 2)
    next(pieces)
    assert readers()
    assert torch.get_num_threads() == before  # what computes meanwhile keeps its threads
    del pieces
    assert readers() == 0
    assert torch.get_num_threads() == before


def test_the_next_piece_is_read_while_one_is_used() -> None:
    """Two clips are read at the same time: each waits for the other."""
    both = threading.Barrier(2, timeout=30)

    def waiting() -> Iterator[int]:
        both.wait()
        yield 1

    assert [piece.items for piece in read_ahead([waiting(), waiting()], 2)] == [[1], [1]]
