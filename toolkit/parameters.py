"""How many parameters a classifier has: what results keep, readable without torch."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """How many parameters a classifier has.

    Attributes:
        method: trainable ones outside the head.
        head: those of the head, and the weights of weighted layers.
        total: all of them, frozen and trainable.
    """

    method: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        """Those of the method and the head."""
        return self.method + self.head
