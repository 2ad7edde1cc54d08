"""What of an adapted backbone depends on the sound alone, so that it need be computed only once.

Everything below the first module that trains gives the same for a clip in every epoch, fold and
run. Where this line runs is read from the structure of the adapted backbone.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod

State = NDArray[np.float32]
"""What is kept of one clip [R, d]: its tokens at the line, then what each tap has kept."""


def first_trained_block(backbone: Backbone, method: PeftMethod) -> int | None:
    """The first block that training changes.

    Args:
        backbone: adapted by `method`.
        method: a method that trains stock modules as a whole changes all of them: their dropout
            runs.

    Returns:
        its number; L: none, only what follows the blocks (final norm, pooling, head) trains; None:
        what is in front of the blocks trains already.
    """
    if method.trains_backbone:
        return None
    places = [backbone.position(path) for path in _changed(backbone)]
    found = [place for place in places if place is not None]
    return min([*found, backbone.depth]) if len(found) == len(places) else None


def _changed(backbone: Backbone) -> Iterator[str]:
    """Paths of inserted modules, of trainable tensors, and of buffers that are not stock."""
    for path, module in backbone.model.named_modules():
        if isinstance(module, insertion.Wrapper | insertion.Echo):
            yield path
    for path, tensor in backbone.model.state_dict(keep_vars=True).items():
        if tensor.requires_grad or backbone.canonical(path) not in backbone.stock:
            yield path


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
                f"the method '{backbone.adapted_by}' trains from the embedding on, so that nothing "
                "of the backbone can be computed once: use `reuse: off`"
            )
        self.backbone, self.block = backbone, block
        below = [
            module
            for path, module in backbone.model.named_modules()
            if isinstance(module, insertion.Tap)
            and (place := backbone.position(path)) is not None
            and place < block
        ]
        self.taps = sorted(below, key=lambda tap: tap.reduce is not None)

    @property
    def _rows(self) -> int:
        """Rows of a state that are not tokens."""
        return sum(tap.reduce is not None for tap in self.taps)

    @property
    def _runs(self) -> int:
        """How often a state has a row for each token."""
        return 1 + len(self.taps) - self._rows

    @property
    def fingerprint(self) -> str:
        """Hash of all that states depend on besides the clip and the backbone as it was loaded."""
        paths = {id(module): path for path, module in self.backbone.model.named_modules()}
        taps = [(self.backbone.canonical(paths[id(t)]), t.reduce is None) for t in self.taps]
        return _fingerprint(self.backbone, self.block, f"tokens, {taps}")

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
        """
        size = (states.shape[1] - self._rows) // self._runs
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
        found = self.resume(self.collate(self.states(features, lengths)).to(expected), lengths)
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

    @property
    def fingerprint(self) -> str:
        """Hash of all that states depend on besides the clip and the backbone as it was loaded."""
        return _fingerprint(self.backbone, self.block, f"pooled, {self._pooling}")

    @torch.no_grad()
    def states(self, features: Tensor, lengths: Tensor | None = None) -> list[State]:
        """One row [1, d] of each clip; see `FrozenPart.states`."""
        seen: list[Tensor] = []
        handle = self._norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.backbone(features, lengths)
        finally:
            handle.remove()
        norm = self._norm
        tokens = functional.layer_norm(seen[-1].float(), norm.normalized_shape, eps=norm.eps)
        return list(self._pool(tokens).float().cpu().numpy()[:, None])

    def collate(self, states: Sequence[State]) -> Tensor:
        """Put the states of B clips into one tensor [B, 1, d]."""
        return torch.from_numpy(np.stack(states))

    def pooled(self, states: Tensor) -> Tensor:
        """What the model pools [B, d] of clips of which these are the states [B, 1, d]."""
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
            raise ConfigError("something follows the final norm")


def _fingerprint(backbone: Backbone, block: int, kept: str) -> str:
    """Hash of the tensors below a block, which a method may have changed when it was applied."""
    digest = hashlib.blake2b(f"{block} {kept}".encode(), digest_size=12)
    for path, tensor in sorted(backbone.model.state_dict(keep_vars=True).items()):
        place = backbone.position(path)
        if tensor.requires_grad or (place is not None and place >= block):
            continue
        digest.update(f"{backbone.canonical(path)} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
