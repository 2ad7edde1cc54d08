"""The contract of searches: from a configuration and a budget to a better configuration."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from toolkit import config
from toolkit.config import CommandLine
from toolkit.errors import ConfigError, UnknownKey, did_you_mean
from toolkit.registry import SEARCHES
from toolkit.settings import Settings, setting
from toolkit.training.experiment import Experiment

__all__ = ["Search", "SearchReport", "parse_budget", "run_search"]


@dataclasses.dataclass(frozen=True)
class SearchReport:
    """What a search found; a search with more to say extends it.

    Attributes:
        valid_loss, valid_score: of the winner, on the validation clips.
        costs: of the winner, by name.
        budget: the largest allowed value by cost.
        evaluated: number of architectures that were compared.
    """

    valid_loss: float
    valid_score: float
    costs: dict[str, float]
    budget: dict[str, float]
    evaluated: int

    def as_dict(self) -> dict[str, Any]:
        """What is not None by name, the costs beside the rest."""
        values = dataclasses.asdict(self)
        costs: dict[str, float] = values.pop("costs")
        return {name: value for name, value in values.items() if value is not None} | costs


class Search(Settings, ABC):
    """A search for the architecture of a method under a budget, on one fold of a recipe.

    It may train on the fold's training clips and select on its validation clips; it never uses a
    test clip.
    """

    costs: ClassVar[Mapping[str, str]]
    """What a budget can limit: name -> description."""

    fold: int | None = setting(
        None, "test fold whose training and validation folds are used; none: the first"
    )

    @abstractmethod
    def run(
        self,
        experiment: Experiment,
        command: CommandLine,
        budget: Mapping[str, float],
        folder: Path,
    ) -> SearchReport:
        """Search, or continue a search that was interrupted.

        Args:
            experiment: the configured experiment, with the chosen fold and an output folder within
                `folder`.
            command: the configuration file, which the found configuration extends, and the
                overrides given with it.
            budget: the largest allowed value by cost.
            folder: where the search writes its files.

        Raises:
            ConfigError: this search cannot work with this configuration.
            RunError: nothing within the budget was found.
        """


def parse_budget(words: Iterable[str], costs: Mapping[str, str]) -> dict[str, float]:
    """Read `latency_ms=20,trainable=1e5`, in one word or several.

    Args:
        words: the words given with `--budget`.
        costs: what can be limited.

    Raises:
        ConfigError: there is no limit, an unknown cost, or a limit that is not a positive number.
    """
    known = ", ".join(costs)
    budget: dict[str, float] = {}
    for pair in (pair for word in words for pair in word.split(",")):
        name, _, text = pair.partition("=")
        if name not in costs:
            raise ConfigError(
                f"'--budget {pair}': {name!r} cannot be bounded{did_you_mean(name, costs)} "
                f"(write NAME=NUMBER, with one of {known})"
            )
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not value > 0:
            raise ConfigError(f"'--budget {pair}': give a number above 0, e.g. {name}=1e5")
        budget[name] = value
    if not budget:
        raise ConfigError(f"a search needs a budget, e.g. `--budget NAME=NUMBER` ({known})")
    return budget


def run_search(
    name: str, file: Path, words: Sequence[str], budget: Sequence[str], folder: Path
) -> SearchReport:
    """Run a registered search.

    Args:
        name: the search.
        file: a configuration of a recipe or of a plugin.
        words: further options: settings of the search, and keys of the configuration.
        budget: words such as `latency_ms=20`, as for `parse_budget`.
        folder: where the search writes its files.

    Raises:
        ConfigError, UnknownName, RunError: the configuration, the options or the budget are wrong.
    """
    kind = SEARCHES.get(name)
    settings = [field.name for field in dataclasses.fields(kind)]
    command = config.parse_command_line([str(file), *words])
    own, keys = {}, {}
    for key, value in command.overrides.items():
        setting_name = key.replace("-", "_")
        if setting_name in settings:
            own[setting_name] = value
        else:
            keys[key] = value
    search = SEARCHES.create({"name": name, **own}, name)
    bounds = parse_budget(budget, kind.costs)
    keys["output_folder"] = str(folder / "training")
    if search.fold is not None:
        keys["folds"] = search.fold
    train = config.recipe_of(file)
    command = dataclasses.replace(command, overrides=keys)
    try:
        experiment = Experiment.of(str(train), command)
    except UnknownKey as error:
        raise UnknownKey(f"{error}; settings of the search: {', '.join(settings)}") from None
    return search.run(experiment, command, bounds, folder)
