"""What of an adapted backbone depends on the sound alone, so that it need be computed only once.

Everything below the first module that trains gives the same for a clip in every epoch, fold and
run. Where this line runs is read from the structure of the adapted backbone.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError, first_line
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod

State = NDArray[np.float32]
"""What is kept of one clip [R, d]: its tokens at the line, then what each tap has kept."""


def first_trained_block(backbone: Backbone, method: PeftMethod) -> int | None:
    """The first block that training changes.

    Args:
        backbone: adapted by `method`.
        method: one that trains stock modules as a whole changes all of them, because their dropout
            runs.

    Returns:
        its number; L: none, only what follows the blocks (final norm, pooling, head) trains; None:
        what is in front of the blocks trains already.
    """
    if method.trains_backbone:
        return None
    first = min((backbone.position(path) for path in _changed(backbone)), default=backbone.depth)
    return None if first < 0 else first


def _changed(backbone: Backbone) -> Iterator[str]:
    """Paths of inserted modules, of trainable tensors, and of buffers that are not stock."""
    for path, module in backbone.model.named_modules():
        if isinstance(module, insertion.Wrapper | insertion.Echo):
            yield path
    for path, tensor in backbone.model.state_dict(keep_vars=True).items():
        if tensor.requires_grad or backbone.canonical(path) not in backbone.stock:
            yield path


def _first_change(backbone: Backbone, method: PeftMethod) -> str:
    """What a method does in front of the blocks."""
    if method.trains_backbone:
        return "trains stock modules as a whole, whose dropout runs from the first one on"
    path = min(_changed(backbone), key=backbone.position)
    return f"changes '{backbone.canonical(path)}', which stands in front of the blocks"


class FrozenPart:
    """The part of an adapted backbone below the first module that trains.

    Args:
        backbone: adapted by `method`.
        method: how it is adapted.

    Attributes:
        block: number of the first block that trains; L: none does.
        taps: places below whose input a module above reads; those that keep tokens come first.

    Raises:
        ConfigError: there is no such part, or the backbone cannot start at a block.
    """

    def __init__(self, backbone: Backbone, method: PeftMethod) -> None:
        backbone.require("reuse")
        block = first_trained_block(backbone, method)
        if block is None:
            raise ConfigError(
                f"nothing that the backbone '{backbone.name}' computes can be reused: the method "
                f"'{backbone.adapted_by}' {_first_change(backbone, method)}; use `reuse: off`"
            )
        self.backbone, self.block = backbone, block
        below = [
            (path, module)
            for path, module in backbone.model.named_modules()
            if isinstance(module, insertion.Tap) and backbone.position(path) < block
        ]
        below.sort(key=lambda found: found[1].reduce is not None)
        self._places = [backbone.canonical(path) for path, _ in below]
        self.taps = [tap for _, tap in below]
        self._rows = sum(tap.reduce is not None for tap in self.taps)  # that are not tokens
        self._runs = 1 + len(self.taps) - self._rows  # rows per token

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all that its states depend on besides the features: of the weights as they are
        now, of the block, and of what the taps keep."""
        weights = self.backbone.fingerprint_now(self.block)
        text = json.dumps([weights, self.block, self._places, self._rows])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @torch.no_grad()
    def states(self, features: Tensor, lengths: Tensor | None = None) -> list[State]:
        """What is kept of each clip of a batch, without its padding.

        Args:
            features: normalised [B, T, F].
            lengths: real rows of each clip before normalisation [B]; None: no clip is padded.
        """
        tokens = self.backbone.encode_until(features, lengths, self.block)
        kept = [insertion.take(tap) for tap in self.taps]
        runs = [tokens, *kept[: self._runs - 1]]
        rows = [row[:, None] for row in kept[self._runs - 1 :]]
        needed = self.backbone.needed
        counts = [tokens.shape[1]] * len(tokens) if needed is None else needed.sum(dim=1).tolist()
        return [
            torch.cat([*(run[i, :n] for run in runs), *(row[i] for row in rows)])
            .float()
            .cpu()
            .numpy()
            for i, n in enumerate(counts)
        ]

    def collate(self, states: Sequence[State]) -> Tensor:
        """Put the states of B clips into one tensor [B, R, d]; tokens are padded with zeros."""
        tokens = [torch.from_numpy(s[: len(s) - self._rows]) for s in states]
        rows = torch.stack([torch.from_numpy(s[len(s) - self._rows :]) for s in states])
        runs = zip(*(t.chunk(self._runs) for t in tokens), strict=True)
        return torch.cat([*(pad_sequence(list(run), batch_first=True) for run in runs), rows], 1)

    def resume(self, states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the backbone returns for clips of which these are the states.

        Args:
            states: as `collate` returns them; of several passes over the clips, one after the
                other.
            lengths: real rows of each clip before normalisation [B]; None: no clip is padded.

        Returns:
            tokens [B, M, d] after the final norm.

        Raises:
            ConfigError: these are no such states.
        """
        width = self.backbone.entrance(self.block).in_dim
        size, rest = divmod(states.shape[-2] - self._rows, self._runs)
        if states.ndim != 3 or states.shape[-1] != width or rest or size < 1:
            raise ConfigError(
                f"this model reads what `FrozenPart.collate` returns, of width {width}, and not "
                f"{list(states.shape)}: call `model.reuse(None)` to read features again"
            )
        tokens, *kept = states.split([size] * self._runs + [1] * self._rows, dim=1)
        for tap, value in zip(self.taps, kept, strict=True):
            tap.kept = value if tap.reduce is None else value[:, 0]
        return self.backbone.encode_from(tokens, lengths, self.block)

    @torch.no_grad()
    def verify(self, features: Tensor, lengths: Tensor | None = None) -> None:
        """Compare what the backbone returns with and without this part, in evaluation.

        Args:
            features, lengths: of a batch, as for `states`.

        Raises:
            ConfigError: it is not the same.
        """
        expected = self.backbone(features, lengths)
        mask = self.backbone.context.output_mask
        states = self.collate(self.states(features, lengths)).to(expected)
        try:
            found = self.resume(states, lengths)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"the backbone '{self.backbone.name}' fails when it starts at block {self.block} "
                f"({first_line(error)}): let it define `resume`, or use `reuse: off`"
            ) from error
        if mask is not None:
            expected, found = expected[mask], found[:, : mask.shape[1]][mask]
        if expected.shape != found.shape or not torch.allclose(found, expected, 1e-4, 1e-4):
            raise ConfigError(
                f"the backbone '{self.backbone.name}', adapted by '{self.backbone.adapted_by}', "
                f"computes something else when it starts at block {self.block}: use `reuse: off`"
            )


class PooledPart:
    """The frozen part of a model of which the final norm and the head train at most.

    Pooling is a mean, and the mean of what the norm's gain and bias make of normalised tokens is
    what they make of the mean. So one vector per clip is kept: the mean before them.

    Args:
        backbone: adapted by `method`.
        method: how it is adapted.
        pool: tokens [B, M, d] of the latest batch -> [B, d], a mean of some of them.
        pooling: its name.

    Attributes:
        block: L, as in `FrozenPart`.

    Raises:
        ConfigError: more than that trains, or the final norm is no layer norm.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: PeftMethod,
        pool: Callable[[Tensor], Tensor],
        pooling: str,
    ) -> None:
        self.backbone, self.block = backbone, backbone.depth
        self._pool, self._pooling = pool, pooling
        inserted = any(True for _ in insertion.inserted(backbone))
        alone = first_trained_block(backbone, method) == backbone.depth
        if inserted or not alone or not isinstance(backbone.norm, nn.LayerNorm):
            raise ConfigError("more than the final layer norm and the head trains")
        self._norm = backbone.norm
        self._follows = f"in the backbone '{backbone.name}', something follows the final norm"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all that its states depend on besides the features; see `FrozenPart`."""
        weights = self.backbone.fingerprint_now(self.block)
        text = json.dumps([weights, "pooled", self._pooling])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @torch.no_grad()
    def states(self, features: Tensor, lengths: Tensor | None = None) -> list[State]:
        """One row [1, d] of each clip; see `FrozenPart.states`.

        Raises:
            ConfigError: something that changes the number of tokens follows the final norm.
        """
        seen: list[Tensor] = []
        handle = self._norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            output = self.backbone(features, lengths)
        finally:
            handle.remove()
        if not seen or seen[-1].shape != output.shape:
            raise ConfigError(self._follows)
        norm = self._norm
        tokens = functional.layer_norm(seen[-1].float(), norm.normalized_shape, eps=norm.eps)
        return list(self._pool(tokens).float().cpu().numpy()[:, None])

    def collate(self, states: Sequence[State]) -> Tensor:
        """Put the states of B clips into one tensor [B, 1, d]."""
        return torch.from_numpy(np.stack(states))

    def pooled(self, states: Tensor) -> Tensor:
        """What the model pools [B, d] of clips of which these are the states [B, 1, d].

        Raises:
            ConfigError: these are no such states.
        """
        if states.ndim != 3 or states.shape[1:] != (1, self.backbone.dim):
            raise ConfigError(
                "this model reads what `PooledPart.collate` returns, vectors of width "
                f"{self.backbone.dim}, and not {list(states.shape)}: call `model.reuse(None)` to "
                "read features again"
            )
        vectors, norm = states[:, 0], self._norm
        return vectors if norm.weight is None else vectors * norm.weight + norm.bias

    @torch.no_grad()
    def verify(self, features: Tensor, lengths: Tensor | None = None) -> None:
        """Compare what is pooled with and without this part; see `FrozenPart.verify`.

        Raises:
            ConfigError: it is not the same, because something follows the final norm.
        """
        expected = self._pool(self.backbone(features, lengths))
        found = self.pooled(self.collate(self.states(features, lengths)).to(expected))
        if not torch.allclose(found, expected, 1e-4, 1e-4):
            raise ConfigError(self._follows)
