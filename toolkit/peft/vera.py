"""VeRA: learned scales around shared random projections (Kopiczko et al., arXiv:2310.11454)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone
from toolkit.peft.base import insertion, setting
from toolkit.peft.lora import LinearMethod
from toolkit.registry import PEFT


@PEFT.register("vera", paper="arXiv:2310.11454")
class VeRA(LinearMethod):
    """W x + b * B (d * A x): A and B are random, frozen and shared, the vectors b and d learned."""

    rank: int = setting(256, "rows of A", minimum=1)
    d_initial: float = setting(0.1, "initial value of d", nonzero=True)
    seed: int = setting(0, "of A and B, which are not saved", minimum=0)

    def insert(self, backbone: Backbone) -> None:
        """A pair of vectors a target; the first owns A and B."""
        sites = self.target_sites(backbone)
        in_dim, out_dim = max(s.in_dim for s in sites), max(s.out_dim for s in sites)
        shared = Projections(self.rank, in_dim, out_dim, self.seed)
        for number, site in enumerate(sites):
            update = VectorScaled(
                shared, site.in_dim, site.out_dim, self.d_initial, owner=number == 0
            )
            insertion.parallel(site, "vera", update)


class Projections(nn.Module):
    """Random A [r, in] and B [out, r] from a seed, Kaiming-uniform; not saved.

    Args:
        rank: r.
        in_dim, out_dim: the largest of all targets; others use the first columns and rows.
        seed: the same numbers on every machine.
    """

    a: Tensor
    b: Tensor

    def __init__(self, rank: int, in_dim: int, out_dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in (("a", (rank, in_dim)), ("b", (out_dim, rank))):
            matrix = torch.empty(shape, device="cpu")
            nn.init.kaiming_uniform_(matrix, generator=generator)
            self.register_buffer(name, matrix, persistent=False)


class VectorScaled(nn.Module):
    """`b * B (d * A x)`; b starts at zero.

    Args:
        shared: A and B.
        in_dim, out_dim: of the projection beside it.
        d_initial: initial value of d.
        owner: keep A and B as a child, so that they follow the model to its device.
    """

    def __init__(
        self, shared: Projections, in_dim: int, out_dim: int, d_initial: float, owner: bool
    ) -> None:
        super().__init__()
        if owner:
            self.projections = shared
        self.shared = (shared,)  # in a tuple: a reference, not a child
        self.in_dim, self.out_dim = in_dim, out_dim
        self.scale_d = nn.Parameter(torch.full((len(shared.a),), d_initial))
        self.scale_b = nn.Parameter(torch.zeros(out_dim))

    @property
    def frozen(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of this target."""
        return self.shared[0].a[:, : self.in_dim], self.shared[0].b[: self.out_dim]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        a, b = self.frozen
        return self.scale_b * functional.linear(self.scale_d * functional.linear(x, a), b)

    def merge_into(self, linear: nn.Linear) -> None:
        """Add the update to a projection's weight."""
        a, b = self.frozen
        linear.weight.add_(self.scale_b[:, None] * b @ (self.scale_d[:, None] * a))
