"""The contract of searches: configuration and budget go in, a better configuration comes out."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from toolkit import config
from toolkit.config import CommandLine
from toolkit.errors import ConfigError, did_you_mean
from toolkit.registry import SEARCHES
from toolkit.settings import Settings, setting
from toolkit.training.experiment import Experiment

__all__ = ["Search", "parse_budget", "run_search"]


class Search(Settings, ABC):
    """A search for the architecture of a method under a budget, on one fold of a recipe.

    It may train on the fold's training clips and choose by its validation clips; it sees no test
    clip.
    """

    costs: ClassVar[Mapping[str, str]]
    """What a budget can bound: name -> what it is."""

    fold: int | None = setting(
        None, "the test fold whose training and validation folds are used; none: the first"
    )

    @abstractmethod
    def run(
        self,
        experiment: Experiment,
        command: CommandLine,
        budget: Mapping[str, float],
        folder: Path,
    ) -> dict[str, Any]:
        """Search, or go on with a search that was interrupted.

        Args:
            experiment: what the configuration describes, with the chosen fold and an output folder
                within `folder`.
            command: the configuration's file, which what is found extends, and what was set
                besides.
            budget: cost -> the most that is allowed.
            folder: where the search's files go.

        Returns:
            a report, plain values.

        Raises:
            ConfigError: this search cannot search in this configuration.
            RunError: nothing within the budget was found.
        """


def parse_budget(words: Iterable[str], costs: Mapping[str, str]) -> dict[str, float]:
    """Read `latency_ms=20,trainable=1e5`, in one word or several.

    Args:
        words: as given with `--budget`.
        costs: what can be bounded.

    Raises:
        ConfigError: no bound, an unknown one, or one that is not a positive number.
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
) -> dict[str, Any]:
    """Run a registered search.

    Args:
        name: of the search.
        file: a configuration of a recipe or of a plugin.
        words: further options; the search's settings by name, all others the configuration's keys.
        budget: see `parse_budget`.
        folder: where the search's files go.

    Raises:
        ConfigError, UnknownName, RunError: anything that a user must mend.
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
    except ConfigError as error:
        if not str(error).startswith("unknown key"):
            raise
        raise ConfigError(f"{error}; settings of the search: {', '.join(settings)}") from None
    return search.run(experiment, command, bounds, folder)
