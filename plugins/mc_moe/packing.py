"""Packed weights: codes of 1 to 8 bits as bit planes, and modules that compute with them.

A packed tensor takes the place of a parameter: the module's class gets a property of that name that
unpacks it, so code that uses `module.weight` gets the unpacked weights, while only codes and scales
are kept, moved and saved.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from toolkit.experts.base import Experts, by_expert

from .quantise import Quantised, group_shape

PLANE = 8
"""Codes of one bit that share a byte."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2^bits as bit planes.

    Args:
        codes: uint8 [..., n].
        bits: bits per code, 1 to 8.

    Returns:
        uint8 [..., bits, ceil(n / 8)], least significant plane and position first.
    """
    short = -codes.shape[-1] % PLANE
    codes = nn.functional.pad(codes, (0, short))
    planes = (codes[..., None, :] >> _range(bits, codes)[:, None]) & 1  # [..., bits, n]
    bytes_ = planes.unflatten(-1, (-1, PLANE)) << _range(PLANE, codes)
    return bytes_.sum(dim=-1, dtype=torch.uint8)


def unpack(planes: Tensor, count: int) -> Tensor:
    """The first `count` codes [..., count] of bit planes [..., bits, bytes], as uint8."""
    bits = ((planes[..., None] >> _range(PLANE, planes)) & 1).flatten(-2)  # [..., bits, n]
    codes = (bits << _range(bits.shape[-2], planes)[:, None]).sum(dim=-2, dtype=torch.uint8)
    return codes[..., :count]


def _range(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device)


class PackedTensor(nn.Module):
    """A tensor whose items (experts) each have their own width.

    Args:
        shape: shape of the tensor.
        axis: the axis along which groups run; with it moved to the end, items are [E, V, d].
        widths: bits of each item; a single number for a tensor that is one item.
        group_size: most weights that share a scale.

    Attributes:
        codes: bit planes of all items, those of the lowest width first; uint8.
        scale: [E, V, groups], half precision.
        zero: the same for the items with more than one bit, uint8.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    __call__: Callable[[], Tensor]

    def __init__(
        self, shape: Sequence[int], axis: int, widths: Sequence[int], group_size: int
    ) -> None:
        super().__init__()
        self.axis, self.widths = axis, list(widths)
        self.moved = torch.empty(*shape, device="meta").movedim(axis, -1).shape
        self.length = self.moved[-1]
        self.vectors = math.prod(self.moved) // self.length // len(widths)
        self.groups, self.size = group_shape(self.length, group_size)
        self.order = sorted(range(len(widths)), key=self.widths.__getitem__)
        self.with_zero = [item for item in self.order if widths[item] > 1]
        bytes_ = sum(map(self._bytes, range(len(widths))))
        scales = (self.vectors, self.groups)
        half, byte = torch.float16, torch.uint8
        self.register_buffer("codes", torch.zeros(bytes_, dtype=byte))
        self.register_buffer("scale", torch.zeros(len(widths), *scales, dtype=half))
        self.register_buffer("zero", torch.zeros(len(self.with_zero), *scales, dtype=byte))

    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.moved)

    def _bytes(self, item: int) -> int:
        """Bytes of the codes of an item."""
        return self.vectors * self.widths[item] * math.ceil(self.length / PLANE)

    def _codes(self, items: Sequence[int]) -> Tensor:
        """The part of `codes` with some items, which are neighbours in `order`."""
        begin = sum(map(self._bytes, self.order[: self.order.index(items[0])]))
        return self.codes[begin : begin + sum(map(self._bytes, items))]

    def at(self, bits: int) -> list[int]:
        """The items with a width."""
        return [item for item in self.order if self.widths[item] == bits]

    def fill(self, quantised: Mapping[int, Quantised]) -> "PackedTensor":
        """Store every item at its width.

        Args:
            quantised: width -> all items [E, V, d] at that width.
        """
        for bits in sorted(set(self.widths)):
            items = self.at(bits)
            chosen = quantised[bits][items]
            self._codes(items).copy_(pack(chosen.codes, bits).flatten())
            self.scale[items] = chosen.scale
            if chosen.zero is not None:
                self.zero[[self.with_zero.index(item) for item in items]] = chosen.zero
        return self

    def unpacked(self, items: Sequence[int]) -> Tensor:
        """Unpack items of one width that are neighbours in `order`: [len(items), V, d]."""
        bits = self.widths[items[0]]
        planes = self._codes(items).view(len(items), self.vectors, bits, -1)
        zero = None
        if bits > 1:
            zero = self.zero[[self.with_zero.index(item) for item in items]]
        codes = unpack(planes, self.length)
        return Quantised(bits, codes, self.scale[list(items)], zero, self.size).weights()

    def forward(self) -> Tensor:
        """Unpack the whole tensor."""
        items = torch.cat([self.unpacked(self.at(bits)) for bits in sorted(set(self.widths))])
        places = [self.order.index(item) for item in range(len(self.order))]
        return items[places].reshape(self.moved).movedim(-1, self.axis)

    def item(self, number: int) -> Tensor:
        """Unpack one item [1, ...] of a tensor whose first axis runs over items."""
        return self.unpacked([number]).reshape(1, *self.moved[1:]).movedim(-1, self.axis)


class HalfTensor(nn.Module):
    """A tensor kept in half precision, for vectors: they have no groups to share a scale."""

    values: Tensor
    __call__: Callable[[], Tensor]

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(tuple(shape), dtype=torch.float16))

    def numel(self) -> int:
        """Number of values."""
        return self.values.numel()

    def forward(self) -> Tensor:
        """Unpack the whole tensor."""
        return self.values.float() if self.values.dtype == torch.float16 else self.values


class PackedModules(nn.Module):
    """Packed tensors by the names of the parameters that they replace.

    A ModuleDict cannot hold one that is called like its own methods, such as `keys`.
    """

    def __getitem__(self, name: str) -> nn.Module:
        return self.get_submodule(name)


class Packed(nn.Module):
    """Mixed into the class of a module with packed parameters.

    Attributes:
        packed: name of the parameter -> module that unpacks it when called.
    """

    packed: PackedModules

    def packed_parameters(self) -> int:
        """Number of parameters that are packed."""
        kept = cast(Iterable[PackedTensor | HalfTensor], self.packed.children())
        return sum(tensor.numel() for tensor in kept)


class QuantisedExperts(Packed):
    """Experts whose weights are packed; they compute as before with the unpacked weights."""

    num_experts: int

    def of(self, expert: int) -> dict[str, Tensor]:
        """The tensors of one expert; of the packed weights only this expert's are unpacked."""
        tensors = {}
        for path, module in self.named_modules():
            prefix = f"{path}." if path else ""
            for name, packed in (
                module.packed.named_children() if isinstance(module, Packed) else ()
            ):
                if isinstance(packed, PackedTensor) and len(packed.widths) == self.num_experts > 1:
                    tensors[prefix + name] = packed.item(expert)
                else:
                    tensors[prefix + name] = by_expert(packed(), self.num_experts)[expert]
        for name, tensor in self.state_dict(keep_vars=True).items():
            if "packed" not in name.split(".") and tensor.ndim:
                tensors[name] = by_expert(tensor, self.num_experts)[expert]
        return tensors


def replace(owner: nn.Module, name: str, packed: nn.Module) -> None:
    """Replace a parameter of a module by a packed tensor.

    Args:
        owner: the module.
        name: name of the parameter.
        packed: a `PackedTensor` or a `HalfTensor`.
    """
    delattr(owner, name)
    if not isinstance(owner, Packed):
        owner.add_module("packed", PackedModules())
    cast(PackedModules, owner.packed).add_module(name, packed)
    kind: Any = type(owner)  # torch's Module is typed as unhashable
    owner.__class__ = _with_property(kind, name)


@functools.cache
def _with_property(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """A subclass of `kind` that unpacks `name`."""
    mixin = QuantisedExperts if issubclass(kind, Experts) else Packed
    bases = (kind,) if issubclass(kind, mixin) else (mixin, kind)
    unpacks = property(lambda self: self.packed[name](), doc=f"`{name}`, unpacked.")
    return type(kind.__name__, bases, {name: unpacks, "__module__": kind.__module__})
