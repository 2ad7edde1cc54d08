"""What the processes of one training job compute together.

In a job of one process, each function returns what it was given. All processes of a job must
call them equally often and in the same order.
"""

import functools
from typing import cast

import torch
from torch import Tensor, distributed
from torch.distributed.nn import functional as collective


def number() -> int:
    """How many processes the job has."""
    return distributed.get_world_size() if _several() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if _several() else 0


def total(values: Tensor) -> Tensor:
    """The sum over all processes; gradients flow back to the values of each."""
    if not _several():
        return values
    summed: Tensor = collective.all_reduce(values, group=_group())
    return summed


def first(values: Tensor) -> Tensor:
    """The values of the first process; without gradient."""
    if not _several():
        return values
    shared = values.detach().clone()
    distributed.broadcast(shared, src=0, group=_group())
    return shared


def largest(size: int, device: torch.device) -> int:
    """The largest of one number per process."""
    if not _several():
        return size
    found = torch.tensor(size, device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX, group=_group())
    return int(found)


def gather(rows: Tensor, count: int) -> Tensor:
    """Put the rows of a batch of which process p holds every W-th, from the p-th, together again.

    Args:
        rows: [B_p, ...], those of this process; without gradient.
        count: B, over all processes.

    Returns:
        [B, ...], in the order in which one process would have them.
    """
    if not _several():
        return rows
    most = -(-count // number())
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    shares = [torch.empty_like(padded) for _ in range(number())]
    distributed.all_gather(shares, padded, group=_group())
    return torch.stack(shares, dim=1).flatten(0, 1)[:count]


def own(rows: Tensor) -> Tensor:
    """This process's rows of a whole batch: what `gather` was given."""
    return rows[rank() :: number()] if _several() else rows


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@functools.lru_cache(maxsize=1)
def _group_of(world: object) -> distributed.ProcessGroup:
    return cast(distributed.ProcessGroup, distributed.new_group())


def _group() -> distributed.ProcessGroup:
    """A group of its own: DDP's reductions come in another order in each process."""
    return _group_of(distributed.group.WORLD)
