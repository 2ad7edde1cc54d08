"""Batches by step number: what a step reads depends on the seed and the step alone."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch.utils.data import IterableDataset

B = TypeVar("B")


class Steps(IterableDataset[B]):
    """Yields the batches of the steps `first` to `last - 1`."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[B]:
        torch.set_num_threads(1)
        for step in range(self.first, self.last):
            yield self.batch(step)

    @abstractmethod
    def batch(self, step: int) -> B:
        """The batch of a step."""
