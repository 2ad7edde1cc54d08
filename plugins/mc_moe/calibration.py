"""How a trained mixture uses its experts, from which PMQ's costs and GPTQ's Hessians are computed.

Shapes: B clips, T tokens, E experts, S inputs per expert (tokens, or slots of a soft mixture).
"""

import dataclasses
from collections.abc import Callable

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from toolkit.experts.base import Experts
from toolkit.peft.mixture import Mixture


@dataclasses.dataclass(frozen=True)
class View:
    """Inputs and weights of a mixture's experts, for some clips.

    Attributes:
        inputs: inputs of each expert, [B, E, S, d].
        mass: each expert's share of each token's output, [B, T, E].
        active: experts that count as activated by a token, [B, T, E], bool.
        spread: outputs of the experts [B, E, S, m] -> their parts of the mixture's output [B, E, *,
            m], or anything with the same scalar products.
    """

    inputs: Tensor
    mass: Tensor
    active: Tensor
    spread: Callable[[Tensor], Tensor]


def view(mixture: Mixture, x: Tensor, router_topk: int) -> View:
    """Compute the view of a mixture.

    Args:
        mixture: one with gates, or one whose experts read slots.
        x: tokens [B, T, d].
        router_topk: experts with the largest gates that count as activated by a token.
    """
    inputs = mixture.expert_inputs(x)
    if mixture.reads_slots:
        return _slots_view(inputs, mixture.token_weights(x)["combine"])
    gates = mixture.gates(x)
    top = gates.topk(min(router_topk, gates.shape[-1]), dim=-1).indices
    active = torch.zeros_like(gates, dtype=torch.bool).scatter(-1, top, True) & (gates > 0)
    weights = rearrange(gates, "b t e -> b e t 1")
    return View(inputs, gates, active, lambda out: weights * out)


def _slots_view(slots: Tensor, combine: Tensor) -> View:
    """The mass of an expert is that of its slots; the expert with the largest is activated.

    The parts of the output are C y. Only C^T C matters for scalar products, so the QR factor R of C
    takes its place: [S, S] instead of [T, S] numbers per expert.
    """
    mass = combine.sum(dim=-1)
    active = functional.one_hot(mass.argmax(dim=-1), mass.shape[-1]).bool()
    factor = torch.linalg.qr(rearrange(combine, "b t e s -> b e t s"), mode="r").R
    return View(slots, mass, active, lambda out: factor @ out)


class Usage:
    """Sums over clips, for one mixture.

    Args:
        experts: its experts.
        hessians: whether to compute Hessians for GPTQ.

    Attributes:
        tokens: number of tokens.
        activations: tokens that activated each expert, [E].
        mass: of each expert, summed over tokens, [E].
        ratios: second largest over largest gate, [tokens].
        hessians: for `down` and `up`, 2 X X^T of the inputs X of each expert's matrix [E, n, n],
            every input weighted as in the mixture's output.
    """

    def __init__(self, experts: Experts, hessians: bool) -> None:
        number, up, down = experts.num_experts, experts.up, experts.down
        self.tokens = 0
        self.activations = up.new_zeros(number, dtype=torch.float64)
        self.mass = up.new_zeros(number, dtype=torch.float64)
        self.hessians: dict[str, Tensor] = {}
        self._ratios: list[Tensor] = []
        if hessians:
            self.hessians = {
                "down": down.new_zeros(number, down.shape[-1], down.shape[-1]),
                "up": up.new_zeros(number, up.shape[-1], up.shape[-1]),
            }

    @property
    def ratios(self) -> Tensor:
        """Second largest over largest gate of every token, [tokens]."""
        return torch.cat(self._ratios)

    def add(self, mixture: Mixture, seen: View) -> None:
        """Add some clips."""
        self.tokens += seen.mass.shape[0] * seen.mass.shape[1]
        self.activations += seen.active.sum(dim=(0, 1))
        self.mass += seen.mass.sum(dim=(0, 1), dtype=torch.float64)
        top = seen.mass.flatten(0, 1).topk(min(2, seen.mass.shape[-1]), dim=-1).values
        self._ratios.append(top[:, -1] / top[:, 0])
        if self.hessians:
            inputs = {"down": seen.inputs, "up": hidden(mixture.experts, seen.inputs)}
            for name, hessian in self.hessians.items():
                parts = seen.spread(inputs[name])
                hessian += 2 * einsum(parts, parts, "b e s m, b e s n -> e m n")


def hidden(experts: Experts, inputs: Tensor) -> Tensor:
    """The inputs of the experts' `up`: [B, E, S, d] -> [B, E, S, r]."""
    x, down, bias = experts.projection(inputs)
    channels = einsum(x, down, "b e s d, e w d -> b e s w") + bias[:, None]
    channels = experts.middle(rearrange(channels, "b e s w -> b s e w"))
    return rearrange(channels, "b s e r -> b e s r")


def squared_errors(
    mixture: Mixture, seen: View, weights: dict[int, dict[str, Tensor]]
) -> dict[int, Tensor]:
    """The squared change of the mixture's output if one expert has other weights.

    An expert adds its part to the output, which no other expert reads, so a single pass with all
    experts changed gives the change due to each of them.

    Args:
        mixture: as trained.
        seen: its view of some clips.
        weights: width -> `down` and `up` of all experts.

    Returns:
        width -> [E], summed over tokens and channels.
    """
    exact = mixture.experts(seen.inputs)
    errors = {}
    for bits, changed in weights.items():
        difference = exact - functional_call(mixture.experts, changed, (seen.inputs,))
        parts = seen.spread(difference)
        errors[bits] = parts.square().sum(dim=(0, 2, 3), dtype=torch.float64)
    return errors
