"""AdaLoRA: ranks given to where they matter (Zhang et al., arXiv:2303.10512)."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.peft import insertion
from toolkit.peft.base import setting
from toolkit.peft.lora import LinearMethod
from toolkit.registry import PEFT


@PEFT.register("adalora", paper="arXiv:2303.10512")
class AdaLoRA(LinearMethod):
    """Updates s P diag(l) Q whose singular values are pruned to a budget while training."""

    rank: int = setting(8, "average rank that is left at the end", minimum=1)
    initial_rank: int = setting(12, "rank of every update at the start", minimum=1)
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", above=0)
    dropout: float = setting(0.0, "on the update's input", minimum=0, below=1)
    warmup: float = setting(0.1, "share of the steps before pruning begins", minimum=0, maximum=1)
    final: float = setting(0.5, "share of the steps after it has ended", minimum=0, maximum=1)
    interval: int = setting(10, "steps between prunings", minimum=1)
    beta: float = setting(0.85, "decay of sensitivity and of its uncertainty", minimum=0, maximum=1)
    orthogonality: float = setting(0.5, "weight of the orthogonality of P and Q", minimum=0)

    def check(self) -> None:
        """Refuse a schedule that ends before it begins, and ranks that cannot shrink."""
        super().check()
        if self.initial_rank < self.rank:
            raise ConfigError(
                f"ranks only fall: 'initial_rank' {self.initial_rank} is below 'rank' {self.rank}"
            )
        if self.warmup + self.final > 1:
            raise ConfigError("'warmup' and 'final' are shares of one training: at most 1 together")

    def insert(self, backbone: Backbone) -> None:
        """One update in parallel to each target."""
        scale = self.alpha / self.rank
        for site in self.target_sites(backbone):
            if self.initial_rank > min(site.in_dim, site.out_dim):
                raise ConfigError(
                    f"'initial_rank' {self.initial_rank} is larger than the projection {site.name}"
                )
            update = Triplets(site.in_dim, site.out_dim, self.initial_rank, scale, self.dropout)
            insertion.parallel(site, "adalora", update)

    def auxiliary_losses(self, backbone: Backbone) -> dict[str, Tensor]:
        """Mean over the updates of |P^T P - I|^2 + |Q Q^T - I|^2 (equation 4)."""
        losses = [update.orthogonality() for update in _updates(backbone)]
        return {"orthogonality": self.orthogonality * torch.stack(losses).mean()}

    @torch.no_grad()
    def on_step(
        self, backbone: Backbone, optimizer: Optimizer, step: int, total_steps: int
    ) -> None:
        """Follow the sensitivities; prune when it is time (section 3.3).

        Gradients that overflowed are not followed: no step was taken with them, and they would
        spoil the averages for good.
        """
        updates = _updates(backbone)
        if _gradients_are_finite(updates):
            for update in updates:
                update.follow(self.beta)
        begin, end = self.schedule(total_steps)
        budget = self.budget(step, total_steps, len(updates))
        if step < end:
            due = begin < step and step % self.interval == 0
        else:  # the last pruning is made up for if its step was not taken
            due = sum(int(update.alive.sum()) for update in updates) > budget
        if due:
            self._prune(updates, budget)
        for update in updates:
            update.values.mul_(update.alive)

    def schedule(self, total_steps: int) -> tuple[float, int]:
        """The step after which pruning begins, and the step of the last pruning.

        The last one always takes place, so that `rank` is the average rank at the end.
        """
        end = max(total_steps - round(self.final * total_steps), 1)
        return min(self.warmup * total_steps, end - 1), end

    def budget(self, step: int, total_steps: int, updates: int) -> int:
        """Singular values that are left after a step, over all updates: a cubic fall."""
        begin, end = self.schedule(total_steps)
        left = 1 - min(max((step - begin) / (end - begin), 0), 1)
        return round((self.rank + (self.initial_rank - self.rank) * left**3) * updates)

    def _prune(self, updates: list["Triplets"], budget: int) -> None:
        scores = torch.cat([update.importance() for update in updates])
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.topk(budget).indices] = True
        for update, alive in zip(updates, kept.split(self.initial_rank), strict=True):
            update.alive.copy_(alive)


def _updates(backbone: Backbone) -> list["Triplets"]:
    return [module for module in insertion.inserted(backbone) if isinstance(module, Triplets)]


def _gradients_are_finite(updates: list["Triplets"]) -> bool:
    parameters = (parameter for update in updates for parameter in update.parameters())
    largest = [p.grad.abs().amax() for p in parameters if p.grad is not None]
    return not largest or bool(torch.stack(largest).isfinite().all())


class Triplets(nn.Module):
    """`scale * P diag(values) Q x`; the values start at zero.

    Args:
        in_dim, out_dim: of the projection beside it.
        rank: triplets r.
        scale: factor of the update.
        dropout: on its input.

    Attributes:
        alive: [r], which values are not pruned.
    """

    alive: Tensor

    def __init__(self, in_dim: int, out_dim: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.p = nn.Parameter(0.02 * torch.randn(out_dim, rank))
        self.q = nn.Parameter(0.02 * torch.randn(rank, in_dim))
        self.values = nn.Parameter(torch.zeros(rank))
        self.scale, self.dropout = scale, dropout
        self.register_buffer("alive", torch.ones(rank, dtype=torch.bool))
        for name in ("p", "q", "values"):
            like = torch.zeros_like(getattr(self, name), requires_grad=False)
            self.register_buffer(f"sensitivity_{name}", like)
            self.register_buffer(f"uncertainty_{name}", like.clone())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        hidden = functional.linear(functional.dropout(x, self.dropout, self.training), self.q)
        return functional.linear(self.scale * self.values * hidden, self.p)

    def orthogonality(self) -> Tensor:
        """|P^T P - I|^2 + |Q Q^T - I|^2."""
        one = torch.eye(len(self.values), device=self.p.device)
        return (self.p.T @ self.p - one).square().sum() + (self.q @ self.q.T - one).square().sum()

    def follow(self, beta: float) -> None:
        """Average each number's sensitivity |w g|, and how much that varies (equations 9, 10)."""
        for name in ("p", "q", "values"):
            parameter = getattr(self, name)
            if parameter.grad is None:
                continue
            now = (parameter * parameter.grad).abs()
            mean = getattr(self, f"sensitivity_{name}").lerp_(now, 1 - beta)
            getattr(self, f"uncertainty_{name}").lerp_((now - mean).abs(), 1 - beta)

    def importance(self) -> Tensor:
        """Importance of each triplet, [r] (equation 8)."""
        p, q, values = (
            getattr(self, f"sensitivity_{name}") * getattr(self, f"uncertainty_{name}")
            for name in ("p", "q", "values")
        )
        return values + p.mean(dim=0) + q.mean(dim=1)

    def merge_into(self, linear: nn.Linear) -> None:
        """Add the update to a projection's weight."""
        linear.weight.add_(self.scale * (self.p * self.values) @ self.q)
