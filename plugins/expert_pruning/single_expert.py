"""Turn a mixture with one expert left into an ordinary bundle of a single adapter."""

import dataclasses
from typing import Any

from toolkit.errors import ConfigError
from toolkit.mixtures.tool import Found, MixtureData, MixtureTool
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.adapter import Adapter, SingleAdapter
from toolkit.peft.base import PeftMethod
from toolkit.peft.mixture import Mixture, mixtures
from toolkit.registry import PEFT, TOOLS


@TOOLS.register("single_expert", paper="arXiv:2206.00277", verb="prune")
class SingleExpert(MixtureTool):
    """Export: a mixture with one expert left becomes a bundle of the method `adapter`."""

    def apply(self, model: AudioClassifier, data: MixtureData) -> dict[str, Any]:
        """Replace every mixture by its last expert; the model is then one of `adapter`."""
        found = mixtures(model.backbone)
        survivors = {site: survivor(model, site, mixture) for site, mixture in found.items()}
        if not found:
            raise ConfigError(
                f"'{model.method.registered_name}' is no mixture: use a bundle of expert_pruning"
            )
        before = sum(p.numel() for p in model.trainable().values())
        wrappers = {id(w.inserted): w for w in insertion.wrappers(model.backbone)}
        if any(type(wrappers[id(m)]) is not insertion.Parallel for m in found.values()):
            raise ConfigError(
                "this mixture is added twice (`add_twice`), which an adapter cannot be: train it "
                "without that quirk"
            )
        for site, mixture in found.items():
            experts = mixture.experts.only([survivors[site]])
            single = SingleAdapter(experts, scale=1.0, learn_scale=False, residual=False)
            insertion.exchange(wrappers[id(mixture)], Adapter.registered_name, single.eval())
        model.method = as_adapter(model)
        return {"survivors": survivors, "parameters_before": before}

    def restructure(self, model: AudioClassifier, plan: dict[str, Any]) -> None:
        """Nothing to do: the bundle of an adapter has the right shape by itself."""

    def report(self, model: AudioClassifier, plan: dict[str, Any]) -> Found:
        """The experts that were left, and the parameters before and after."""
        return Found(
            parameters_before=plan["parameters_before"],
            parameters_after=sum(p.numel() for p in model.trainable().values()),
            details={"survivors": plan["survivors"]},
        )


def as_adapter(model: AudioClassifier) -> PeftMethod:
    """The method `adapter` with the settings that it shares with the mixture's method."""
    settings = model.method.as_dict()
    names = [field.name for field in dataclasses.fields(Adapter)]
    shared = {name: value for name, value in settings.items() if name in names}
    return PEFT.create({"name": Adapter.registered_name, "mode": "parallel", **shared})


def survivor(model: AudioClassifier, site: str, mixture: Mixture) -> int:
    """The number of the only expert left in a mixture, whose gate is 1 for every token.

    Raises:
        ConfigError: more experts are left, or a single one would not be an adapter.
    """
    name = model.method.registered_name
    if mixture.reads_slots:
        raise ConfigError(
            f"one expert of '{name}' is no adapter: it reads slots, which are means of all tokens, "
            "and gives every token the same output; use a bundle of expert_pruning, where tokens "
            "choose experts"
        )
    if not mixture.weighs_experts or not mixture.unchanged:
        raise ConfigError(
            f"the experts of '{name}' are not adapters in full precision with a softmax router: "
            "use a bundle of expert_pruning that has not been compressed"
        )
    alive: list[int] = mixture.alive.nonzero().flatten().tolist()
    if len(alive) > 1:
        raise ConfigError(
            f"{site} has {len(alive)} experts left: train expert_pruning to its end, or prune to "
            "one with `toolkit prune --method seer --scope layer --keep-ratio 0`"
        )
    return alive[0]
