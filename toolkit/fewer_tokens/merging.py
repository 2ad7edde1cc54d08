"""Token merging: similar tokens become one in every block (Bolya et al., arXiv:2210.09461)."""

import functools
from typing import Any

from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.experts.base import Experts
from toolkit.peft import insertion
from toolkit.peft.mixture import Mixture
from toolkit.reductions import matched


class MergingBlock(nn.Module):
    """A stock block in which tokens merge between attention and feed-forward.

    Tokens are compared by the mean of their keys over the heads. A token that stands for n patches
    counts n times as a key: log n is added to its logits (proportional attention).

    Args:
        wrapped: the stock block.
        backbone: to which it belongs.
        number: of the block.
        count: tokens that merge into others in every clip; half of what patches are left at most.
    """

    def __init__(self, wrapped: nn.Module, backbone: Backbone, number: int, count: int) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.number, self.count = number, count
        self._backbone = (backbone,)  # in a tuple: a reference, not a child
        self._keys: Tensor | None = None
        backbone.site(number, "attn.k").module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._keys = output.detach()

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Tokens [B, M, d] -> [B, K, d]; a spectrogram has no padding, so masks say nothing."""
        backbone = self._backbone[0]
        context = backbone.context
        sizes = context.sizes(hidden_states)
        bias = None if sizes is None else sizes.log()[:, None, None].to(hidden_states.dtype)
        tokens = backbone.attend(self.number, hidden_states, bias)
        keys, self._keys = self._keys, None
        assert keys is not None  # the attention has just computed them
        keys = keys.unflatten(-1, (backbone.heads, -1)).mean(dim=-2)
        count = min(self.count, (tokens.shape[1] - context.front) // 2)
        if count:
            merged = matched(keys, count, context.front, sizes)
            context.reductions.append(merged)
            tokens = merged(tokens)
        return backbone.feed(self.number, tokens)


def merge_in_blocks(backbone: Backbone, count: int) -> None:
    """Let tokens merge in every block of an adapted backbone.

    Args:
        backbone: already adapted.
        count: tokens that merge into others, per block and clip; half of the patches at most.

    Raises:
        ConfigError: more than that, or the backbone or the method needs every token in its place.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"'merge_tokens' must be a whole number above 0, not {count!r}")
    if not backbone.splits_blocks:
        raise ConfigError(
            f"the tokens of the backbone '{backbone.name}' cannot merge: its positions and masks "
            "need every token in its place; set `merge_tokens` to null, or use a spectrogram "
            "transformer such as ast"
        )
    f, t = backbone.grid or (0, 0)
    if count > f * t // 2:
        raise ConfigError(
            f"'merge_tokens' {count} is more than half of the {f * t} patches that the backbone "
            f"'{backbone.name}' reads: use at most {f * t // 2}"
        )
    _refuse_neighbours(backbone)
    for site in backbone.sites("block"):
        make = functools.partial(MergingBlock, backbone=backbone, number=site.block, count=count)
        insertion.around_stock(site, make)


def _refuse_neighbours(backbone: Backbone) -> None:
    """Refuse what was inserted if it needs the tokens' order, or the same tokens twice in a block.

    Raises:
        ConfigError: it does.
    """
    slots = [m for m in backbone.modules() if isinstance(m, Mixture) and m.reads_slots]
    of_slots = {module for mixture in slots for module in mixture.modules()}
    for module in backbone.modules():
        if isinstance(module, Experts) and module.convolves and module not in of_slots:
            raise ConfigError(
                f"tokens cannot merge under a {type(module).__name__.lower()} adapter, which "
                "convolves over their order: use `block: bottleneck`, or set `merge_tokens` to null"
            )
        if isinstance(module, insertion.Echo):
            raise ConfigError(
                "tokens cannot merge where what was computed at the attention is added behind the "
                "feed-forward again: set `add_twice` to false, or `merge_tokens` to null"
            )
