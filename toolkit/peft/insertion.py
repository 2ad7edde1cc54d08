"""The only code that rewires a backbone: it puts a wrapper where a stock module stood.

A wrapper keeps the stock module under `wrapped` and its own module under the name of the method
that inserted it, so that what was inserted can be found, saved, trained and removed by structure.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from toolkit.backbones.base import WRAPPED, Backbone, Site


class Wrapper(nn.Module):
    """A stock module and what was inserted at its place.

    Args:
        wrapped: what stood there.
        name: name of the inserted module, part of the names of saved tensors.
        inserted: the new module.
    """

    def __init__(self, wrapped: nn.Module, name: str, inserted: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.add_module(name, inserted)
        self.name = name

    @property
    def inserted(self) -> nn.Module:
        """The inserted module."""
        return self.get_submodule(self.name)


class Parallel(Wrapper):
    """`wrapped(x) + inserted(x)`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Same inputs and outputs as the wrapped module."""
        return _on_tokens(self.wrapped(x, *args, **kwargs), lambda y: y + self.inserted(x))


class After(Wrapper):
    """`inserted(wrapped(x))`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Same inputs and outputs as the wrapped module."""
        return _on_tokens(self.wrapped(x, *args, **kwargs), self.inserted)


def parallel(site: Site, name: str, module: nn.Module) -> None:
    """Add `module(x)` to what the module at `site` makes of the same x."""
    site.replace(Parallel(site.module, name, module))


def after(site: Site, name: str, module: nn.Module) -> None:
    """Let `module` read what leaves the module at `site`."""
    site.replace(After(site.module, name, module))


def wrappers(backbone: Backbone) -> Iterator[Wrapper]:
    """Every wrapper in a backbone."""
    return (module for module in backbone.modules() if isinstance(module, Wrapper))


def inserted(backbone: Backbone) -> Iterator[nn.Module]:
    """Every inserted module."""
    return (wrapper.inserted for wrapper in wrappers(backbone))


def set_training(module: nn.Module, mode: bool) -> None:
    """Put inserted modules in train or eval mode and stock modules in eval mode.

    So the dropout of a frozen backbone never runs, while that of an adapter does.
    """
    module.training = False
    for name, child in module.named_children():
        if isinstance(module, Wrapper) and name != WRAPPED:
            child.train(mode)
        else:
            set_training(child, mode)


def _on_tokens(output: Any, function: Any) -> Any:
    """Apply a function to a module's tokens, whether it returns them alone or first in a tuple."""
    if isinstance(output, tuple):
        return (function(output[0]), *output[1:])
    return function(output)
