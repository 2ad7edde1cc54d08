"""Experts in a cache: the policy (least recently used, with prefetch) and the cached experts.

The policy knows nothing of tensors, so the simulator runs the same one.
"""

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from toolkit.experts.base import Experts
from toolkit.experts.bottleneck import Bottleneck

V = TypeVar("V")


class LRUCache(Generic[V]):
    """Keeps the values that were used last.

    Args:
        slots: how many values it holds; with 0 slots, a value is used once and dropped.

    Attributes:
        values: expert -> value, the least recently used first.
        counts: `hits`, `misses`, `prefetched`, and `used`: prefetched values that were needed.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.values: OrderedDict[int, V] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self._ahead: set[int] = set()

    def access(self, needed: Sequence[int], load: Callable[[int], V]) -> Iterator[tuple[int, V]]:
        """Yield the needed experts with their values.

        Those in the cache come first, so that loading one does not evict another that is needed.

        Args:
            needed: experts, each once.
            load: loads an expert that is not in the cache.
        """
        here = [expert for expert in needed if expert in self.values]
        for expert in [*here, *(expert for expert in needed if expert not in here)]:
            known = expert in self.values
            self.counts["hits" if known else "misses"] += 1
            self.counts["used"] += known and expert in self._ahead
            self._ahead.discard(expert)
            yield expert, self._bring(expert, load)

    def prefetch(self, wanted: Sequence[int], load: Callable[[int], V]) -> None:
        """Load as many experts as there are slots, so that the first are evicted last.

        Args:
            wanted: experts, the likeliest first.
            load: loads an expert that is not in the cache.
        """
        for expert in reversed(wanted[: self.slots]):
            if expert not in self.values:
                self.counts["prefetched"] += 1
                self._ahead.add(expert)
            self._bring(expert, load)

    def clear(self) -> None:
        """Drop all values; the counts stay."""
        self.values.clear()
        self._ahead.clear()

    def _bring(self, expert: int, load: Callable[[int], V]) -> V:
        value = self.values.pop(expert) if expert in self.values else load(expert)
        self.values[expert] = value
        while len(self.values) > self.slots:
            gone, _ = self.values.popitem(last=False)
            self._ahead.discard(gone)
        return value


def total_counts(caches: Iterable[LRUCache[Any]]) -> dict[str, int]:
    """The counts of several caches together."""
    counts = [cache.counts for cache in caches]
    return {name: sum(c[name] for c in counts) for name in ("hits", "misses", "prefetched", "used")}


@dataclasses.dataclass(frozen=True)
class Copy:
    """An expert's tensors on the device that computes.

    Attributes:
        tensors: by name.
        ready: on a GPU, when they have arrived.
    """

    tensors: dict[str, Tensor]
    ready: "torch.cuda.Event | None"

    def wait(self) -> dict[str, Tensor]:
        """The tensors, for use by work queued from now on."""
        if self.ready is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.ready)
            for tensor in self.tensors.values():
                tensor.record_stream(stream)
        return self.tensors


class CachedExperts(nn.Module):
    """Replaces the experts of a mixture: all of them are in the store, some in a cache.

    The store stays in host memory wherever the model is moved; the cache is on the device of the
    tokens. On a CPU it holds the experts unpacked. An expert is computed only for the tokens that
    use it, and the outputs of a token's experts are added in the order of their numbers, so the
    result is the same to the last bit whatever the cache holds. There is a loop over the experts
    that are used, since they arrive one after the other.

    Args:
        store: the experts.
        single: one expert of the same kind, whose weights are not used.
        slots: experts that the cache holds.

    Attributes:
        cache: the experts in it, and its counts.
        following: the router and the cached experts of the next mixture, for prefetching.
    """

    def __init__(self, store: Experts, single: Experts, slots: int) -> None:
        super().__init__()
        self.store, self.single = store, (single.eval(),)  # in tuples: not children
        self.num_experts, self.dim = store.num_experts, store.dim
        self.cache: LRUCache[Copy] = LRUCache(slots)
        self._version = 0
        self.following: tuple[()] | tuple[Any, CachedExperts] = ()
        self._stream: torch.cuda.Stream | None = None

    def mix(self, x: Tensor, gates: Tensor) -> Tensor:
        """Sum a token's experts, multiplied by their gates; experts with gate zero are skipped.

        Args:
            x: tokens [B, T, d].
            gates: [B, T, E].

        Returns:
            [B, T, d].
        """
        active = gates > 0
        rank = active.cumsum(dim=-1) - 1  # of an expert among those of its token
        parts = x.new_zeros(*x.shape[:2], int(active.sum(dim=-1).max()), x.shape[-1])
        needed = active.flatten(0, 1).any(dim=0).nonzero()[:, 0].tolist()
        for expert, copy in self._current().access(needed, lambda e: self._load(e, x.device)):
            clips, positions = places = active[..., expert].nonzero(as_tuple=True)
            out = (
                self._compute(x, (clips, positions), copy.wait())
                * gates[..., expert][places][:, None]
            )
            parts[*places, rank[..., expert][places]] = out
        self._prefetch_next(x)
        return parts.sum(dim=2)

    mix_chosen = mix

    def _compute(
        self, x: Tensor, places: tuple[Tensor, Tensor], tensors: dict[str, Tensor]
    ) -> Tensor:
        """One expert's outputs [n, d] at some tokens, given by clips [n] and positions [n]."""
        if isinstance(self.store, Bottleneck):
            return functional_call(self.single[0], tensors, (x[places][None, None],))[0, 0]
        # A token's neighbours matter, so the expert reads whole clips.
        clips, inverse = places[0].unique(return_inverse=True)
        out = functional_call(self.single[0], tensors, (x[clips][:, None],))[:, 0]
        return out[inverse, places[1]]

    @torch.no_grad()
    def _prefetch_next(self, x: Tensor) -> None:
        if self.following:
            router, experts = self.following
            wanted = by_count(router.guess(x))
            experts._current().prefetch(wanted, lambda e: experts._load(e, x.device))

    def _current(self) -> LRUCache[Copy]:
        """The cache, emptied if the store's tensors have changed (a bundle was loaded)."""
        version = sum(tensor._version for tensor in self.store.state_dict().values())
        if version != self._version:
            self.cache.clear()
            self._version = version
        return self.cache

    @torch.no_grad()
    def _load(self, expert: int, device: torch.device) -> Copy:
        """Copy one expert to a device; on a GPU, while other work is computed."""
        tensors = {name: tensor.detach() for name, tensor in self.store.of(expert).items()}
        if device.type != "cuda":
            return Copy({n: t.to(device, copy=True) for n, t in tensors.items()}, None)
        self._stream = self._stream or torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            copies = {n: t.pin_memory().to(device, non_blocking=True) for n, t in tensors.items()}
            return Copy(copies, self._stream.record_event())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CachedExperts":
        """Apply a conversion; the store stays in host memory, and the cache is emptied."""
        super()._apply(fn, recurse)
        self.store.to("cpu")
        self.single[0]._apply(fn)
        self.cache.clear()
        return self


def by_count(experts: Tensor) -> list[int]:
    """The experts among the numbers [...], the most frequent first."""
    numbers, counts = experts.unique(return_counts=True)
    return numbers[counts.argsort(descending=True, stable=True)].tolist()
