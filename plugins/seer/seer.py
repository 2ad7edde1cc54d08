"""SEER-MoE: prune the experts that tokens hardly use, then fine-tune the router's decisions.

Muzio et al., SEER-MoE: Sparse Expert Efficiency through Regularization for Mixture-of-Experts
(arXiv:2404.05089), on a trained mixture of adapters.
"""

import functools
import math
from typing import Any, Literal

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.features.batch import Batch
from toolkit.mixtures.observe import some_of, visit, watched
from toolkit.mixtures.tool import Found, MixtureData, MixtureTool
from toolkit.model import AudioClassifier
from toolkit.peft.base import Objective, setting
from toolkit.peft.mixture import Mixture, mixtures
from toolkit.peft.topk import TopKMethod, topk_mixtures
from toolkit.registry import TOOLS
from toolkit.routing import dense

from .counting import Count, chosen_most


@TOOLS.register("seer", paper="arXiv:2404.05089", verb="prune")
class Seer(MixtureTool):
    """SEER-MoE: heavy-hitter pruning of experts, entropy-regularised fine-tuning."""

    count: Literal["hard", "soft"] = setting(
        "soft", "count an expert's tokens (hard), or its share of every token's softmax (soft)"
    )
    scope: Literal["layer", "global"] = setting(
        "global", "drop the least used experts of each mixture (layer), or of all mixtures (global)"
    )
    keep_ratio: float = setting(0.75, "share of the experts to keep", minimum=0, maximum=1)
    min_per_layer: int = setting(1, "fewest experts that a mixture keeps", minimum=1)
    topk: int = setting(
        2, "experts per token in a hard count, where the mixture has no k of its own", minimum=1
    )
    calibration_clips: int = setting(128, "clips of the training folds to count on", minimum=1)
    epochs: int = setting(2, "epochs of fine-tuning on the training folds; 0: none", minimum=0)
    lr: float = setting(0.0005, "constant learning rate of the fine-tuning", minimum=0)
    batch_size: int = setting(16, "clips per step of the fine-tuning", minimum=1)
    lambda_ent: float = setting(
        0.01, "weight of the routing's entropy in the fine-tuning, summed over mixtures", minimum=0
    )
    k_schedule: Literal["anneal"] | list[list[int]] = setting(
        "anneal",
        "k during the fine-tuning, for mixtures with k: from the trained k down to 1, each for as "
        "many steps (anneal), or by step: [[0, 2], [100, 1]] is k = 2, from step 100 on k = 1; "
        "[]: as trained",
    )
    renormalise: bool | None = setting(
        None,
        "a token's gates sum to 1, or are its probabilities; none: as trained, but probabilities "
        "at k = 1, where a gate that is always 1 teaches the router nothing",
    )
    seed: int = setting(0, "seed of the fine-tuning: order of clips, noise", minimum=0)

    def check(self) -> None:
        """Check that a schedule is pairs in rising order of steps."""
        pairs = self.k_schedule if self.k_schedule != "anneal" else []
        steps = [pair[0] for pair in pairs]
        if any(len(p) != 2 or p[0] < 0 or p[1] < 1 for p in pairs) or steps != sorted(set(steps)):
            raise ConfigError(
                "'k_schedule' must be pairs [step, k] in the order of the steps, such as "
                f"[[0, 2], [100, 1]], not {pairs}"
            )

    def apply(self, model: AudioClassifier, data: MixtureData) -> dict[str, Any]:
        """Count how much experts are used, prune, and fine-tune."""
        found = mixtures(model.backbone)
        self._refuse(model, found)
        schedule = self.schedule(model, len(data.calibration))
        before = sum(p.numel() for p in model.trainable().values())
        counts = {site: Count(self.count, m.k or self.topk) for site, m in found.items()}
        clips = some_of(data.calibration, self.calibration_clips)
        visit(model, data, clips, lambda site, mixture, x: counts[site].add(mixture, x))
        scores = {site: count.scores for site, count in counts.items()}
        kept = chosen_most(scores, self.scope, self.keep_ratio, self.min_per_layer)
        self._cut(model, kept)
        pruned = data.score(model, data.test)
        entropies = self._finetune(model, data, schedule)
        k = schedule[-1]
        renormalise = self._set_k(model, k)
        outcome = {
            "scores": {site: score.tolist() for site, score in scores.items()},
            "experts_before": sum(len(score) for score in scores.values()),
            "score_pruned": pruned,
            "entropy_by_epoch": entropies,
        }
        return {
            "kept": kept,
            "k": k,
            "renormalise": renormalise,
            "parameters_before": before,
            "found": outcome,
        }

    def restructure(self, model: AudioClassifier, plan: dict[str, Any]) -> None:
        """Leave the experts that were kept, and the last k."""
        self._cut(model, plan["kept"])
        for mixture in topk_mixtures(model.backbone):
            if plan["k"] is not None:
                mixture.router.k = plan["k"]
            if plan.get("renormalise") is not None:  # bundles of 0.1 do not say, and keep it
                mixture.router.renormalise = plan["renormalise"]

    def report(self, model: AudioClassifier, plan: dict[str, Any]) -> Found:
        """Experts, parameters and k before and after, and the score between the two stages."""
        kept = plan["kept"]
        details = {
            "kept": {site: len(numbers) for site, numbers in kept.items()},
            "experts_after": sum(map(len, kept.values())),
            "k": plan["k"],
            **plan["found"],
        }
        return Found(
            parameters_before=plan["parameters_before"],
            parameters_after=sum(p.numel() for p in model.trainable().values()),
            details=details,
        )

    def _refuse(self, model: AudioClassifier, found: dict[str, Mixture]) -> None:
        """Explain why experts cannot be taken out, or why there is no k to schedule."""
        name = model.method.registered_name
        if not found:
            raise ConfigError(
                f"'{name}' is no mixture from which seer can take experts: use a bundle of "
                "dense_moa, topk_moa or soft_moa"
            )
        for mixture in found.values():
            mixture.refuse_unless_prunable()
        if self.k_schedule not in ("anneal", []) and any(
            mixture.k is None for mixture in found.values()
        ):
            raise ConfigError(
                f"a token of '{name}' uses all experts, so there is no k to lower: leave out "
                "`--k-schedule`, or use a bundle of topk_moa"
            )

    def _cut(self, model: AudioClassifier, kept: dict[str, list[int]]) -> None:
        for site, mixture in mixtures(model.backbone).items():
            mixture.keep(kept[site])

    def schedule(self, model: AudioClassifier, clips: int) -> list[int | None]:
        """k at every step of the fine-tuning; None leaves it as trained.

        Args:
            model: with mixtures.
            clips: number of clips that it is fine-tuned on.

        Returns:
            At least one, which is meant for a model that is not fine-tuned.

        Raises:
            ConfigError: `k_schedule` names a step after the last one.
        """
        steps = self.epochs * math.ceil(clips / self.batch_size)
        numbers = range(max(steps, 1))
        if self.k_schedule == "anneal":
            k = next((mixture.router.k for mixture in topk_mixtures(model.backbone)), None)
            return [k and k - step * k // len(numbers) for step in numbers]
        last_first = self.k_schedule[::-1]
        if last_first and last_first[0][0] not in numbers:
            raise ConfigError(
                f"'k_schedule' changes k at step {last_first[0][0]}, and there are {len(numbers)} "
                "steps of fine-tuning (from 0): raise `--epochs`, or name an earlier step"
            )
        return [next((k for begin, k in last_first if begin <= step), None) for step in numbers]

    def _set_k(self, model: AudioClassifier, k: int | None) -> bool | None:
        """Set k and whether gates are renormalised; returns the latter, None: as it was."""
        method, renormalise = model.method, self.renormalise
        if renormalise is None and k == 1 and isinstance(method, TopKMethod) and method.k > 1:
            renormalise = False
        for mixture in topk_mixtures(model.backbone):
            if k is not None:
                mixture.router.k = k
            if renormalise is not None:
                mixture.router.renormalise = renormalise
        return renormalise

    def _finetune(
        self, model: AudioClassifier, data: MixtureData, schedule: list[int | None]
    ) -> list[float]:
        """Train what the method trains, on its own losses and the entropy.

        Args:
            model: pruned.
            data: its clips.
            schedule: k by step.

        Returns:
            Mean entropy of each epoch, in nats, averaged over mixtures.
        """
        optimizer = torch.optim.AdamW(
            model.method.parameter_groups(model.trainable(), self.lr), weight_decay=0.0
        )
        history, upcoming = [], iter(schedule)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for epoch in range(self.epochs):
                model.train()
                clips = data.calibration.sample(frac=1, random_state=self.seed + epoch)
                entropies = []
                for batch in data.batches(clips, self.batch_size):
                    self._set_k(model, next(upcoming))
                    objective = data.objective(batch.labels)
                    entropies.append(self._step(model, optimizer, batch, objective))
                history.append(sum(entropies) / len(entropies))
        model.eval()
        return history

    def _step(
        self,
        model: AudioClassifier,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        objective: Objective,
    ) -> float:
        """Take a step on L + lambda (sum of the mixtures' entropies); returns their mean."""
        entropies: list[Tensor] = []

        def see(site: str, mixture: Mixture, x: Tensor) -> None:
            entropies.append(dense.entropy(mixture.real(mixture.shares(x))).mean())

        features = model.backbone.features.normalise(batch.features, batch.lengths)
        forward = functools.partial(model, lengths=batch.lengths)
        with watched(model, see):
            losses = model.method.training_losses(model.backbone, forward, features, objective)
        entropy = torch.stack(entropies)
        total = torch.stack([*losses.values(), self.lambda_ent * entropy.sum()]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return entropy.mean().item()
