"""Which clips form which batch: shuffled, weighted or grouped by length.

The batches of the whole job are the same for any number of processes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from toolkit.errors import ConfigError

POOL = 50  # batches that are sorted together: more of them pad less, and mix clips less


class TrainingBatches(Sampler[list[int]]):
    """Shuffled batches of the whole job, of which this process takes its share.

    The batches of an epoch depend on the seed and the epoch alone. Every process takes every
    W-th clip of each, so that W processes make the same updates as one. A last batch with fewer
    clips than processes joins the one before.

    Args:
        clips: number of clips.
        batch_size: clips per batch, over all processes.
        seed: seed of the order.
        rank, world_size: this process, and the number of processes.
        weights: [clips] probabilities, up to a factor, of being drawn; an epoch then draws as many
            clips as there are, with replacement. None: every clip once.
        lengths: rows of each clip; batches then hold clips of about the same length. None: clips
            stay in the order in which they were drawn.

    Raises:
        ConfigError: a batch has fewer clips than there are processes.
    """

    def __init__(
        self,
        clips: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        if min(clips, batch_size) < world_size:
            raise ConfigError(
                f"batches of {min(clips, batch_size)} clips cannot be shared by {world_size} "
                "processes: raise `--batch_size`, or start fewer processes"
            )
        bounds = list(range(0, clips, batch_size))
        if len(bounds) > 1 and clips - bounds[-1] < world_size:
            bounds.pop()
        self.bounds = list(zip(bounds, [*bounds[1:], clips], strict=True))
        self.sizes = [end - begin for begin, end in self.bounds]
        self.clips, self.seed, self.epoch = clips, seed, 0
        self.rank, self.world_size = rank, world_size
        self.weights, self.lengths = weights, lengths

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        if self.weights is None:
            drawn = torch.randperm(self.clips, generator=generator)
        else:
            drawn = torch.multinomial(self.weights, self.clips, True, generator=generator)
        order = drawn.tolist()
        if self.lengths is not None:
            order = grouped(order, self.lengths, self.bounds, generator)
        for begin, end in self.bounds:
            yield order[begin:end][self.rank :: self.world_size]


def grouped(
    order: Sequence[int],
    lengths: Sequence[int],
    bounds: Sequence[tuple[int, int]],
    generator: Generator,
) -> list[int]:
    """Reorder the clips of an epoch so that each batch holds clips of about the same length.

    The clips of `POOL` batches are sorted by length and cut into batches, whose order is random.

    Args:
        order: positions of the clips, in the order in which they were drawn.
        lengths: rows of the clip at each position.
        bounds: begin and end of each batch in `order`; the sizes of the batches stay the same.
        generator: draws the order of the batches.
    """
    size = bounds[0][1] - bounds[0][0]
    pooled: list[int] = []
    for begin in range(0, len(order), POOL * size):
        pooled += sorted(order[begin : begin + POOL * size], key=lengths.__getitem__)
    batches = [pooled[begin:end] for begin, end in bounds]
    full = [number for number, batch in enumerate(batches) if len(batch) == size]
    places = torch.randperm(len(full), generator=generator).tolist()
    mixed = dict(zip(full, (batches[full[place]] for place in places), strict=True))
    return [clip for number, batch in enumerate(batches) for clip in mixed.get(number, batch)]


def evaluation_batches(
    clips: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    lengths: Sequence[int] | None = None,
) -> list[list[int]]:
    """This process's share of an evaluation: every clip in exactly one batch of one process.

    Args:
        clips: number of clips.
        batch_size: clips per batch of one process.
        rank, world_size: this process, and the number of processes.
        lengths: rows of each clip; batches then go from the shortest to the longest.
    """
    order = range(clips) if lengths is None else sorted(range(clips), key=lengths.__getitem__)
    own = list(order[rank::world_size])
    return [own[i : i + batch_size] for i in range(0, len(own), batch_size)]


def derive_seed(*parts: int) -> int:
    """A seed that depends on all parts, such as (seed, fold, epoch, step)."""
    value = 0
    for part in parts:  # splitmix64: neighbouring parts give unrelated seeds
        value = (value + int(part) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1
