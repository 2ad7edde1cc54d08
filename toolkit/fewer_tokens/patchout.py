"""Patchout: training on a part of the patches (Koutini et al., arXiv:2110.05069)."""

import dataclasses
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.reductions import Dropped
from toolkit.settings import Settings, setting


class Patchout(Settings):
    """Which patches are dropped in training: whole times and mel bands, or single ones.

    In a configuration, a number stands for `share`.
    """

    time: float = setting(0.0, "share of the patches' times that is dropped", minimum=0, below=1)
    frequency: float = setting(
        0.0, "share of the patches' mel bands that is dropped", minimum=0, below=1
    )
    share: float = setting(
        0.0, "share of the patches that is dropped one by one (unstructured)", minimum=0, below=1
    )
    block: int = setting(
        0, "in front of which block, from 0; those below read all patches", minimum=0
    )

    @classmethod
    def from_plain(cls, value: Any, where: str) -> Self:
        """A mapping, or a number that stands for `share`."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = {"share": value}
        return super().from_plain(value, where)

    def check(self) -> None:
        """Refuse to drop nothing, and to drop in both ways."""
        structured = self.time > 0 or self.frequency > 0
        if structured == (self.share > 0):
            raise ConfigError(
                "patchout drops times and mel bands (`time`, `frequency`) or single patches "
                "(`share`): set one of the two kinds"
            )

    def drawn(self, grid: tuple[int, int], front: int, generator: Generator | None) -> Dropped:
        """Draw the patches that are left of a grid (f, t), in frequency-major order.

        Args:
            grid: the grid.
            front: tokens in front of the patches.
            generator: of the draw; None: torch's own.
        """
        f, t = grid
        if self.share:
            kept = _some(f * t, self.share, generator)
            return Dropped(kept, f * t, front, grid=None)
        rows, columns = _some(f, self.frequency, generator), _some(t, self.time, generator)
        kept = (t * rows[:, None] + columns).flatten()
        return Dropped(kept, f * t, front, grid=(len(rows), len(columns)))


class PatchDropper(nn.Module):
    """Drops patches of a backbone in front of one of its blocks, in train mode only.

    Args:
        backbone: already adapted.
        patchout: which patches, and where.

    Attributes:
        generator: of the draws; None: torch's own.

    Raises:
        ConfigError: the backbone has no grid of patches or no such block, or nothing would be
            dropped.
    """

    def __init__(self, backbone: Backbone, patchout: Patchout) -> None:
        super().__init__()
        if backbone.grid is None:
            raise ConfigError(
                "patchout drops patches of a spectrogram, and the backbone "
                f"'{backbone.name}' has no grid of patches: set `patchout` to null, or use a "
                "spectrogram transformer such as ast"
            )
        if patchout.block >= backbone.depth:
            raise ConfigError(
                f"patchout in front of block {patchout.block}: the backbone has blocks 0 to "
                f"{backbone.depth - 1}"
            )
        self.patchout, self.grid = patchout, backbone.grid
        self.generator: Generator | None = None
        self._backbone = (backbone,)  # in a tuple: a reference, not a child
        f, t = self.grid
        if len(patchout.drawn(self.grid, 0, Generator()).kept) == f * t:
            raise ConfigError(
                f"{patchout} drops nothing of a grid of {f} x {t} patches: raise the shares, or "
                "set `patchout` to null"
            )
        entrance = backbone.site(patchout.block, "block").module
        self._handle = entrance.register_forward_pre_hook(self._drop, with_kwargs=True)

    def remove(self) -> None:
        """Leave all patches from now on."""
        self._handle.remove()

    def _drop(
        self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.training:
            return None
        tokens, *others = args or (options.pop("hidden_states"),)
        dropped = self._draw(tokens.device)
        self._backbone[0].context.reductions.append(dropped)
        return (dropped(tokens), *others), options

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _draw(self, device: torch.device) -> Dropped:
        backbone = self._backbone[0]
        front = backbone.prefix_tokens + backbone.prompt_tokens
        drawn = self.patchout.drawn(self.grid, front, self.generator)
        return dataclasses.replace(drawn, kept=drawn.kept.to(device))


def _some(count: int, share: float, generator: Generator | None) -> Tensor:
    """Numbers below `count` without a share of them, ascending; one is left at least."""
    left = max(1, count - round(share * count))
    return torch.randperm(count, generator=generator)[:left].sort().values
