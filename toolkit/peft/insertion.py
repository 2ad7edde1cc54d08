"""The only code that rewires a backbone: it puts a wrapper where a stock module stood.

A wrapper keeps the stock module under `wrapped` and its own module under the name of the method
that inserted it, so that what was inserted can be found, saved, trained and removed by structure.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from toolkit.backbones.base import WRAPPED, Backbone, Site
from toolkit.backbones.quantised import is_quantised
from toolkit.errors import ConfigError, ToolkitError


@runtime_checkable
class Mergeable(Protocol):
    """An inserted module that can be folded into the weights of the module that it wraps."""

    def merge_into(self, stock: Any, /) -> None:
        """Change the weights of the wrapped module so that it computes the same alone."""


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
        self.original: dict[str, Tensor] | None = None

    @property
    def inserted(self) -> nn.Module:
        """The inserted module."""
        return self.get_submodule(self.name)

    @property
    def merged(self) -> bool:
        """Whether the inserted module is folded into the wrapped one's weights."""
        return self.original is not None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same inputs and outputs as the wrapped module."""
        x, others, named = _tokens_first(args, kwargs)
        if self.merged:
            return self.wrapped(x, *others, **named)
        return self.adapted(x, *others, **named)

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What `forward` does unless merged; each kind of wrapper defines it."""
        raise TypeError(f"{type(self).__name__} must define adapted()")


class Parallel(Wrapper):
    """`wrapped(x) + inserted(x)`."""

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stock output plus the inserted module's output for the same input."""
        return _on_tokens(self.wrapped(x, *args, **kwargs), lambda y: _sum(y, self.inserted(x)))


class After(Wrapper):
    """`inserted(wrapped(x))`."""

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The inserted module applied to the stock output."""
        return _on_tokens(self.wrapped(x, *args, **kwargs), self.inserted)


class Before(Wrapper):
    """`wrapped(inserted(x))`."""

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The stock module applied to the inserted module's output."""
        return self.wrapped(self.inserted(x), *args, **kwargs)


class BeforeAndBeside(Wrapper):
    """`wrapped(a) + a` with `a = inserted(x)`."""

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The stock module applied to the inserted module's output, plus that output."""
        x = self.inserted(x)
        return _on_tokens(self.wrapped(x, *args, **kwargs), lambda y: y + x)


class Reparametrised(Wrapper):
    """`inserted(x, wrapped)`: the inserted module computes with the wrapped one's weights."""

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The inserted module, given the input and the stock module."""
        return self.inserted(x, self.wrapped)


class ParallelKept(Parallel):
    """`Parallel` that also hands its branch on to an `Echo` further up."""

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stock output plus the branch, which is kept for the `Echo`."""
        output = self.wrapped(x, *args, **kwargs)
        self.kept = self.inserted(x)
        return _on_tokens(output, lambda y: _sum(y, self.kept))


class Echo(nn.Module):
    """`wrapped(x)` plus what a `ParallelKept` further down computed in the same pass."""

    def __init__(self, wrapped: nn.Module, source: ParallelKept) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.source = (source,)  # in a tuple: a reference, not a child

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same inputs and outputs as the wrapped module."""
        x, others, named = _tokens_first(args, kwargs)
        return _on_tokens(self.wrapped(x, *others, **named), lambda y: y + _take(self.source[0]))


class Tap(nn.Module):
    """A stock module that keeps its input for a branch further up.

    Args:
        wrapped: the stock module.
        reduce: what is kept of the input: tokens [B, M, d] -> one row per clip [B, d]; None: all.
    """

    def __init__(
        self, wrapped: nn.Module, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.wrapped, self.reduce = wrapped, reduce

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same inputs and outputs as the wrapped module."""
        x, others, named = _tokens_first(args, kwargs)
        self.kept = x if self.reduce is None else self.reduce(x)
        return self.wrapped(x, *others, **named)


class ParallelToTap(Wrapper):
    """`wrapped(x) + inserted(t)`, t being what a `Tap` kept."""

    def __init__(self, wrapped: nn.Module, name: str, inserted: nn.Module, tap: Tap) -> None:
        super().__init__(wrapped, name, inserted)
        self.tap = (tap,)  # in a tuple: a reference, not a child

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stock output plus the branch computed from the tapped input."""
        branch = self.inserted(_take(self.tap[0]))
        return _on_tokens(self.wrapped(x, *args, **kwargs), lambda y: _sum(y, branch))


class Passing(Wrapper):
    """`wrapped(x)`; the inserted module is used by the attention inside."""

    def adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The stock output as it is."""
        return self.wrapped(x, *args, **kwargs)


def parallel(site: Site, name: str, module: nn.Module) -> None:
    """Add `module(x)` to what the module at `site` makes of the same x."""
    site.replace(Parallel(site.module, name, module))


def parallel_twice(site: Site, again: Site, name: str, module: nn.Module) -> None:
    """Add `module(x)` at `site`, and the same tensor at `again` further up."""
    wrapper = ParallelKept(site.module, name, module)
    site.replace(wrapper)
    again.replace(Echo(again.module, wrapper))


def parallel_to_input(norm: Site, site: Site, name: str, module: nn.Module) -> None:
    """Add to what leaves `site` what `module` makes of the input of the norm in front of it."""
    tap = Tap(norm.module)
    norm.replace(tap)
    site.replace(ParallelToTap(site.module, name, module, tap))


def after(site: Site, name: str, module: nn.Module) -> None:
    """Let `module` read what leaves the module at `site`."""
    site.replace(After(site.module, name, module))


def before(site: Site, name: str, module: nn.Module) -> None:
    """Let the module at `site` read what leaves `module`."""
    site.replace(Before(site.module, name, module))


def before_and_beside(site: Site, name: str, module: nn.Module) -> None:
    """As `before`, and add what leaves `module` behind the module at `site` too."""
    site.replace(BeforeAndBeside(site.module, name, module))


def reparametrise(site: Site, name: str, module: nn.Module) -> None:
    """Let `module(x, linear)` compute in place of the linear at `site`."""
    site.replace(Reparametrised(site.module, name, module))


def around_stock(site: Site, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put what `make` makes of the stock module at `site` in its place, inside all wrappers."""
    parent, attribute = site.parent, site.attribute
    while hasattr(getattr(parent, attribute), WRAPPED):
        parent, attribute = getattr(parent, attribute), WRAPPED
    setattr(parent, attribute, make(getattr(parent, attribute)))


def tap(site: Site, reduce: Callable[[Tensor], Tensor] | None = None) -> Tap:
    """Keep what enters the module at `site` in every pass; read it with `take`.

    Args:
        site: a module that reads tokens.
        reduce: keep this row of each clip, [B, M, d] -> [B, d], in place of the tokens.
    """
    kept = Tap(site.module, reduce)
    site.replace(kept)
    return kept


def keys_values(backbone: Backbone, site: Site, name: str, module: nn.Module) -> None:
    """Give the attention at an `mhsa` site further keys and values.

    Args:
        backbone: a stock transformers model; its attention function is set to one that asks.
        site: the attention.
        name: of `module`, part of the names of saved tensors.
        module: returns keys and values [N, d] when called without arguments.

    Raises:
        ConfigError: this backbone's attention cannot have any.
    """
    backbone.require("kv")
    from toolkit.peft.prefixed_attention import PREFIXED  # transformers is slow to import

    attention: Any = site.module
    attention.extra_keys_values = (module,)  # in a tuple: a reference, not a child
    model: Any = backbone.model
    model.config._attn_implementation = PREFIXED
    site.replace(Passing(attention, name, module))


def take(kept: Tap) -> Tensor:
    """What a tap kept in this pass; it forgets it."""
    return _take(kept)


def _take(holder: Any) -> Tensor:
    value: Tensor = holder.kept
    holder.kept = None
    return value


def merge(backbone: Backbone, method: str) -> None:
    """Fold every inserted module into the weights that it wraps.

    Raises:
        ConfigError: one of them cannot be folded; nothing is changed then.
    """
    found = [wrapper for wrapper in wrappers(backbone) if not wrapper.merged]
    foldable = [(w, part) for w in found if isinstance(part := w.inserted, Mergeable)]
    if not found or len(foldable) < len(found):
        raise ConfigError(
            f"'{method}' cannot be merged: what it adds is not linear in what the backbone's "
            "weights compute; use it unmerged"
        )
    if any(is_quantised(p) for wrapper, _ in foldable for p in wrapper.wrapped.parameters()):
        raise ConfigError(
            f"'{method}' cannot be merged into weights in int8, which would be rounded again: load "
            "the backbone with `weights: float32`, or use it unmerged"
        )
    for wrapper, part in foldable:
        wrapper.original = {n: p.detach().clone() for n, p in wrapper.wrapped.named_parameters()}
        with torch.no_grad():
            part.merge_into(wrapper.wrapped)


@torch.no_grad()
def unmerge(backbone: Backbone) -> None:
    """Restore the weights that `merge` changed, exactly."""
    for wrapper in wrappers(backbone):
        if wrapper.original is not None:
            for name, parameter in wrapper.wrapped.named_parameters():
                parameter.copy_(wrapper.original[name])
            wrapper.original = None


def is_merged(backbone: Backbone) -> bool:
    """Whether inserted modules are folded into the weights that they wrap."""
    return any(wrapper.merged for wrapper in wrappers(backbone))


def unmerged_weights(backbone: Backbone) -> dict[int, Tensor]:
    """What `unmerge` would restore, by the id of the parameter that it would be restored in."""
    return {
        id(parameter): wrapper.original[name]
        for wrapper in wrappers(backbone)
        if wrapper.original is not None
        for name, parameter in wrapper.wrapped.named_parameters()
    }


def exchange(wrapper: Wrapper, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one that a wrapper inserted.

    Args:
        wrapper: stays where it is.
        name: of the new module, part of the names of saved tensors.
        module: the new one.
    """
    delattr(wrapper, wrapper.name)
    wrapper.add_module(name, module)
    wrapper.name = name


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


def _tokens_first(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Tokens, further positional arguments, and those by name, whichever way the tokens came."""
    if args:
        return args[0], args[1:], kwargs
    kwargs = dict(kwargs)
    return kwargs.pop("hidden_states"), (), kwargs


def _sum(tokens: Tensor, branch: Tensor) -> Tensor:
    """Add a branch to tokens; a scalar is added to all of them.

    Raises:
        ConfigError: the branch is no tensor, or has another width, which would be repeated or fail.
    """
    if not isinstance(branch, Tensor):
        raise ConfigError(f"its module returns a {type(branch).__name__} instead of tokens")
    if branch.ndim and branch.shape[-1] != tokens.shape[-1]:
        raise ConfigError(
            f"its module returns tokens of width {branch.shape[-1]}, and {tokens.shape[-1]} are "
            "needed there (`site.out_dim`)"
        )
    return tokens + branch


def named_failure(backbone: Backbone, error: Exception) -> Exception:
    """An error of a pass that names method and site if an inserted module raised it.

    Args:
        backbone: that made the pass.
        error: raised by it.

    Returns:
        the error to raise: a `ToolkitError` with a longer message, or the same with a note.
    """
    frame, failed = error.__traceback__, None
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        failed = owner if isinstance(owner, Wrapper) else failed
        frame = frame.tb_next
    if failed is None:
        return error
    path = next(path for path, module in backbone.model.named_modules() if module is failed)
    where = f"the method '{backbone.adapted_by}' fails at {backbone.canonical(path)}"
    if isinstance(error, ToolkitError):
        return type(error)(f"{where}: {error}")
    error.add_note(where)
    return error


def _on_tokens(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to a module's tokens, whether it returns them alone or first in a tuple."""
    if isinstance(output, tuple):
        return (function(output[0]), *output[1:])
    return function(output)
