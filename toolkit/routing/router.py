"""What a router is: the gates of tokens over experts, also when a tool has wrapped it.

Apart from the routers themselves, because mixtures, tools and views ask any of them the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn


class Router(nn.Module, ABC):
    """Gates of tokens: [B, T, d] -> [B, T, E], zero for the experts that a token does not use.

    Attributes:
        weighs_experts: whether a token's gates come from a softmax, so that they say how much each
            expert counts for it.
        k: experts that a token chooses, where that number is set; None elsewhere.
        alive: [E], bool, the experts that can be used.
    """

    weighs_experts: ClassVar[bool] = False
    k: int | None = None
    alive: Tensor
    __call__: Callable[..., Tensor]

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gates of tokens.

        Args:
            x: tokens [B, T, d].
            mask: [B, T], True where a token is real; None: all are.

        Returns:
            [B, T, E].
        """

    @property
    def trained(self) -> "Router":
        """The router that was trained, without what tools have put around it."""
        return self

    def keep(self, numbers: Sequence[int]) -> None:
        """Leave only some experts, in this order."""
        raise TypeError(f"{type(self).__name__} must define keep()")


class WrappedRouter(Router):
    """A router whose gates a tool changes.

    Args:
        router: the router it wraps, which may itself be wrapped.
    """

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    @property
    def trained(self) -> Router:
        """The innermost router."""
        return self.router.trained
