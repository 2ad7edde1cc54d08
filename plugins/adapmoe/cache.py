"""Experts in a cache: the policy (least recently used, with prefetch) and the cached experts.

The policy knows nothing of tensors, so the simulator runs the same one.
"""

import dataclasses
import functools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from toolkit.experts.base import Experts
from toolkit.experts.bottleneck import Bottleneck

from .gating import AdaptiveRouter
from .predictor import Predictor

V = TypeVar("V")


class LRUCache(Generic[V]):
    """Keeps the values that were used last, and beside them those that were prefetched.

    A prefetched value waits in a spare buffer and evicts nothing. When it is used, it joins those
    used last; if it is not among those that are needed next, it is dropped.

    Args:
        slots: how many values it holds; with 0 slots, a value is used once and dropped.
        room: how many values the spare buffer holds.

    Attributes:
        values: expert -> value, the least recently used first.
        ahead: expert -> prefetched value.
        counts: `hits`, `misses`, `prefetched`, and `used`: hits in the spare buffer.
    """

    def __init__(self, slots: int, room: int = 1) -> None:
        self.slots, self.room = slots, room
        self.values: OrderedDict[int, V] = OrderedDict()
        self.ahead: dict[int, V] = {}
        self.counts: Counter[str] = Counter()

    def access(self, needed: Sequence[int], load: Callable[[int], V]) -> Iterator[tuple[int, V]]:
        """Yield the needed experts with their values.

        Those in the cache come first, then the prefetched ones, so that loading one does not evict
        another that is needed.

        Args:
            needed: experts, each once.
            load: loads an expert that is in neither.
        """
        self.ahead = {expert: self.ahead[expert] for expert in self.ahead if expert in needed}
        places = {e: 0 if e in self.values else 1 if e in self.ahead else 2 for e in needed}
        for expert in sorted(needed, key=places.__getitem__):
            yield expert, self._use(expert, load)

    def prefetch(self, wanted: Sequence[int], load: Callable[[int], V]) -> bool:
        """Load as many experts as the spare buffer has room for.

        Args:
            wanted: experts, the likeliest first.
            load: loads an expert that is in neither the cache nor the buffer.

        Returns:
            Whether any was loaded.
        """
        missing = [e for e in wanted if e not in self.values and e not in self.ahead]
        chosen = missing[: self.room - len(self.ahead)]
        self.ahead |= {expert: load(expert) for expert in chosen}
        self.counts["prefetched"] += len(chosen)
        return bool(chosen)

    def clear(self) -> None:
        """Drop all values; the counts stay."""
        self.values.clear()
        self.ahead.clear()

    def _use(self, expert: int, load: Callable[[int], V]) -> V:
        ahead = expert in self.ahead
        known = ahead or expert in self.values
        self.counts["hits" if known else "misses"] += 1
        self.counts["used"] += ahead
        value = (self.ahead if ahead else self.values).pop(expert) if known else load(expert)
        self.values[expert] = value
        while len(self.values) > self.slots:
            self.values.popitem(last=False)
        return value


def prefetch_nearest(
    targets: Iterable[tuple[LRUCache[V], Sequence[int], Callable[[int], V]]],
) -> None:
    """Prefetch for the first of several mixtures that lacks an expert it is guessed to need.

    Args:
        targets: the next mixtures, the nearest first: cache, experts by likelihood, and how one is
            loaded.
    """
    for cache, wanted, load in targets:
        if cache.prefetch(wanted, load):
            return


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
        room: experts that its spare buffer holds.

    Attributes:
        cache: the experts in it, and its counts.
        following: the adaptive routers and the cached experts of the next mixtures, nearest first,
            for which experts are prefetched here.
        predictor: of the first mixture, which `foresee` asks.
    """

    def __init__(self, store: Experts, single: Experts, slots: int, room: int = 1) -> None:
        super().__init__()
        self.store, self.single = store, (single.eval(),)  # in tuples: not children
        self.num_experts, self.dim = store.num_experts, store.dim
        self.cache: LRUCache[Copy] = LRUCache(slots, room)
        self._version = 0
        self.following: tuple[tuple[AdaptiveRouter, CachedExperts], ...] = ()
        self.predictor: Predictor | None = None
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
        context = self.store.context
        mask = None if context is None or context.mask is None else context.mask[clips]
        out = functional_call(self.single[0], tensors, (x[clips][:, None], mask))[:, 0]
        return out[inverse, places[1]]

    @torch.no_grad()
    def foresee(self, tokens: Tensor) -> None:
        """Prefetch for clips that enter the backbone, as `predictor` says.

        Args:
            tokens: mean of each clip's tokens in front of the first block, [B, d].
        """
        assert self.predictor is not None  # of the first mixture, the only one that is asked
        wanted = self.predictor.ranking(tokens)
        self._current().prefetch(wanted, lambda e: self._load(e, tokens.device))

    @torch.no_grad()
    def _prefetch_next(self, x: Tensor) -> None:
        prefetch_nearest(
            (
                experts._current(),
                by_count(router.guess(x)),
                functools.partial(experts._load, device=x.device),
            )
            for router, experts in self.following
        )

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
