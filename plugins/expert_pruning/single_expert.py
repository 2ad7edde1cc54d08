"""From a mixture of which one expert is left to an ordinary bundle of a single adapter."""

from typing import Any

from toolkit.errors import ConfigError
from toolkit.mixtures.tool import MixtureData, MixtureTool
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.peft.adapter import Adapter, SingleAdapter
from toolkit.peft.mixture import Mixture, mixtures
from toolkit.registry import PEFT, TOOLS


@TOOLS.register("single_expert", paper="arXiv:2206.00277", verb="prune")
class SingleExpert(MixtureTool):
    """Export: a mixture with one expert left becomes a bundle of the method `adapter`."""

    def apply(self, model: AudioClassifier, data: MixtureData) -> dict[str, Any]:
        """See `MixtureTool.apply`; the model is one of `adapter` then."""
        found = mixtures(model.backbone)
        survivors = {site: survivor(model, site, mixture) for site, mixture in found.items()}
        if not found:
            raise ConfigError(
                f"'{model.method.registered_name}' is no mixture: export a bundle of expert_pruning"
            )
        before = sum(p.numel() for p in model.trainable().values())
        wrappers = {id(w.inserted): w for w in insertion.wrappers(model.backbone)}
        if any(type(wrappers[id(m)]) is not insertion.Parallel for m in found.values()):
            raise ConfigError(
                "this mixture is added twice (`add_twice`), which no adapter is: train it without "
                "that quirk"
            )
        for site, mixture in found.items():
            experts = mixture.experts.only([survivors[site]])
            single = SingleAdapter(experts, scale=1.0, learn_scale=False, residual=False)
            insertion.exchange(wrappers[id(mixture)], Adapter.registered_name, single.eval())
        model.method = as_adapter(model)
        return {"survivors": survivors, "parameters_before": before}

    def restructure(self, model: AudioClassifier, plan: dict[str, Any]) -> None:
        """See `MixtureTool.restructure`: an adapter's bundle has the right shape by itself."""

    def report(self, model: AudioClassifier, plan: dict[str, Any]) -> dict[str, Any]:
        """Which experts were left, and parameters before and after."""
        return {**plan, "parameters_after": sum(p.numel() for p in model.trainable().values())}


def as_adapter(model: AudioClassifier) -> Adapter:
    """The method `adapter` with the settings that it shares with the mixture's."""
    settings = model.method.as_dict()
    names = Adapter(mode="parallel").as_dict()
    shared = {name: value for name, value in settings.items() if name in names}
    return PEFT.create({"name": Adapter.registered_name, "mode": "parallel", **shared})


def survivor(model: AudioClassifier, site: str, mixture: Mixture) -> int:
    """The number of the one expert that a mixture has left, whose gate is 1 for every token.

    Raises:
        ConfigError: there are more, or one expert would be no adapter.
    """
    name = model.method.registered_name
    if mixture.reads_slots:
        raise ConfigError(
            f"one expert of '{name}' is no adapter: it reads slots, means of all tokens, and gives "
            "every token the same; export a mixture whose tokens choose experts (expert_pruning)"
        )
    if not mixture.weighs_experts or not mixture.unchanged:
        raise ConfigError(
            f"the mixtures of '{name}' are not adapters in full precision whose tokens choose by a "
            "softmax: export a bundle of expert_pruning, before it is compressed"
        )
    alive: list[int] = mixture.alive.nonzero().flatten().tolist()
    if len(alive) > 1:
        raise ConfigError(
            f"{site} has {len(alive)} experts left: train expert_pruning to its end, or prune to "
            "one with `toolkit prune --method seer --scope layer --keep-ratio 0`"
        )
    return alive[0]
