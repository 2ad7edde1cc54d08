"""A study: which methods are compared on which corpora, as described by one YAML file.

    study: esc10                       names the folder of its results
    question: Which method is best?    printed at the top of the report
    corpora:
      ESC-10: {recipe: recipes/ESC50, data_folder: ESC-10, folds: [1, 2, 3, 4, 5]}
    methods: [lora, 'adapter*', {hparams: softmoa, sweep: {peft.slots: [1, 2]}}]
    backbones: [ast_tiny]
    seeds: [1, 2]
    baseline: linear

The fields of the classes below describe all keys.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from toolkit import places
from toolkit.config.tree import dump, read, refuse_tags
from toolkit.errors import ConfigError, did_you_mean
from toolkit.settings import Settings, setting

NAME = re.compile(r"(?!\.)[\w.+,=-]{1,200}")  # a name that can be a folder's
KEY = re.compile(r"\w[\w.-]*")  # of a configuration, perhaps dotted
COPY = "study.yaml"

ELSEWHERE = {
    "backbone": "list it in 'backbones'",
    "data_folder": "give it as 'data_folder' of the corpus",
    "few_shot": "list it in 'shots'",
    "folds": "give them as 'folds' of the corpus",
    "seed": "list it in 'seeds'",
    "overwrite": "give `--overwrite` to `toolkit study run`",
    "output_folder": "choose it with `--output` of `toolkit study run`",
    "debug": "a debug run gives no result; set a small number of 'epochs' to try a study",
    "test_only": "a study trains its runs; use the recipe itself to test a run again",
    "trust": "a study cannot trust itself; train with the recipe to use `--trust`",
    "plugins": "name the folder with `--plugins` of `toolkit study run`, if you trust it",
    "cache_folder": "choose it with the variable TOOLKIT_CACHE",
    "download": "download the corpus with the recipe, into its folder in `--data`",
}
"""Keys of a recipe that the overrides of a study cannot set -> where they belong.

A study may come from someone else: it says less than its user can type.
"""


class CorpusSpec(Settings):
    """A corpus of a study: a recipe, its data, and differences from its configuration."""

    recipe: str = setting("recipes/ESC50", "the folder that holds train.py and hparams/")
    data_folder: str | None = setting(
        None,
        "folder of the data, inside the one given by `--data`; none: the recipe's embedded corpus",
    )
    folds: list[int] | None = setting(
        None, "test folds, one run per fold; none: one run of the whole recipe"
    )
    shots: list[int | None] | None = setting(None, "instead of the study's shots")
    seeds: list[int] | None = setting(None, "instead of the study's seeds")
    overrides: dict[str, Any] = setting(
        {}, "keys of the recipe's configuration, such as epochs: 20"
    )

    def check(self) -> None:
        """Refuse overrides of keys that the study itself sets, and data outside of `--data`."""
        check_overrides("overrides", self.overrides)
        place = Path(self.data_folder or "")
        if place.is_absolute() or ".." in place.parts:
            raise ConfigError(
                f"'data_folder' must lie in the folder given by `--data`, unlike {str(place)!r}"
            )


class MethodSpec(Settings):
    """One configuration of a method, or several, and how they are varied."""

    glob: str | None = setting(
        None, "registered names or names of configurations, such as 'lora*'; '*' matches all"
    )
    hparams: str | None = setting(
        None, "instead of `glob`: the name of one configuration, such as softmoa, or a YAML file"
    )
    name: str | None = setting(None, "its name in the study; none: the name of the configuration")
    overrides: dict[str, Any] = setting(
        {}, "keys of the configuration, such as peft.num_experts: 14"
    )
    sweep: dict[str, Any] = setting(
        {}, "key -> list of values; each combination is a separate method"
    )
    seeds: list[int] | None = setting(None, "instead of the corpus's and the study's seeds")
    corpora: list[str] | None = setting(None, "names of the corpora to run it on; none: all")
    published: str | None = setting(None, "its name in published.csv; none: its name here")
    size: str | None = setting(
        None, "the setting that a budget of parameters may change; none: found by name"
    )

    @classmethod
    def from_plain(cls, value: Any, where: str) -> "MethodSpec":
        """A mapping, or a glob by itself."""
        return super().from_plain({"glob": value} if isinstance(value, str) else value, where)

    def check(self) -> None:
        """Require exactly one of `glob` and `hparams`, and a name only with `hparams`."""
        if (self.glob is None) == (self.hparams is None):
            raise ConfigError("give either 'glob' or 'hparams'")
        if self.name is not None and self.glob is not None:
            raise ConfigError("'name' names a single configuration: give 'hparams', not 'glob'")
        if self.name is not None:
            check_name("name", self.name)
        check_overrides("overrides", self.overrides)
        check_overrides("sweep", self.sweep)
        for key, values in self.sweep.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"'sweep.{key}' must be a list of values")


class Budget(Settings):
    """What each method may spend; without a budget, methods run as configured."""

    parameters: int | str | None = setting(
        None,
        "trainable parameters outside the head, or the name of the method that sets the number",
    )
    within: float = setting(10.0, "by how many % a method may miss that number", minimum=0)
    seconds: float | None = setting(
        None, "seconds of training instead, from which the number of epochs follows", minimum=0
    )

    def check(self) -> None:
        """Require exactly one kind of budget."""
        if (self.parameters is None) == (self.seconds is None):
            raise ConfigError("give either 'parameters' or 'seconds'")


class Study(Settings):
    """What a study compares, and the texts that its report shows."""

    study: str = setting("", "name of the study")
    question: str = setting("", "what it asks, printed at the top of the report")
    limits: str = setting("", "what it cannot show; the report shows this too")
    conclusion: str = setting("", "what was found, written after reading the results")
    corpora: dict[str, CorpusSpec] = setting({}, "name -> recipe, data and differences")
    methods: list[MethodSpec] = setting(
        [], "globs or mappings; if several match a name, the first one counts"
    )
    backbones: list[str] = setting(["ast_tiny"], "registered names, folders or hub ids")
    seeds: list[int] = setting([10], "of initialisation, order and augmentation")
    shots: list[int | None] = setting([None], "training clips per class; none: all")
    overrides: dict[str, Any] = setting({}, "keys of every recipe's configuration")
    budget: Budget | None = setting(None, "what each method may spend; none: as configured")
    baseline: str | None = setting(None, "the method with which all others are compared")
    timeout_minutes: float | None = setting(None, "a run that takes longer has failed", minimum=0)

    def check(self) -> None:
        """Require something to run, and names that can be used for folders."""
        for key in ("corpora", "methods", "backbones", "seeds", "shots"):
            if not getattr(self, key):
                raise ConfigError(f"'{key}' is empty: name what the study should run")
        check_name("study", self.study)
        check_overrides("overrides", self.overrides)
        for name in self.corpora:
            check_name("corpora", name)
        for backbone in self.backbones:
            check_name("backbones", short_name(backbone))
        for position, method in enumerate(self.methods):
            for name in method.corpora or ():
                if name not in self.corpora:
                    near = did_you_mean(name, self.corpora)
                    raise ConfigError(f"'methods.{position}.corpora': no corpus {name!r}{near}")

    @classmethod
    def read(cls, path: Path) -> "Study":
        """Read a study from its file, or from the copy in the folder of its results.

        Raises:
            ConfigError: there is no such file, it is not YAML, or a key is wrong.
        """
        file = locate(path)
        try:
            values = read(file)
        except FileNotFoundError:
            known = sorted(file.stem for file in places.studies().glob("*.yaml"))
            raise ConfigError(
                f"there is no study {path}{did_you_mean(path.stem, known)}\nname a YAML file, the "
                f"folder of its results, or one that comes with the toolkit: {', '.join(known)}"
            ) from None
        refuse_tags(values, str(file))
        if not isinstance(values, Mapping):
            raise ConfigError(f"{file} must hold keys and values, such as 'study: esc10'")
        return cls.from_mapping(values, file.stem)

    def write(self, folder: Path) -> None:
        """Write a copy into the folder of the results."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COPY).write_text(dump(self.as_dict()), encoding="utf-8")

    def folder(self, place: Path) -> Path:
        """The folder of the study's results.

        Args:
            place: what the study was read from. If it is a folder, the results are there.
        """
        return place if place.is_dir() else Path("results") / "studies" / self.study

    def check_baseline(self, methods: Collection[str]) -> None:
        """Raise `ConfigError` if the baseline is not among the methods of the study."""
        if self.baseline is not None and self.baseline not in methods:
            near = did_you_mean(self.baseline, methods)
            raise ConfigError(
                f"'baseline': the study has no method {self.baseline!r}{near} (it has "
                f"{', '.join(methods) or 'none'})"
            )


def short_name(backbone: str) -> str:
    """A backbone's name as a part of a path: `MIT/ast-base` -> `ast-base`."""
    return backbone.rstrip("/").rpartition("/")[2]


def check_name(where: str, name: str) -> None:
    """Raise `ConfigError` if a name cannot be used for a folder."""
    if not NAME.fullmatch(str(name)) or str(name) in (os.curdir, os.pardir):
        raise ConfigError(
            f"'{where}': {name!r} cannot name a folder; use only letters, digits, -, _ and ., not "
            "first a dot, and at most 200 of them"
        )


def locate(path: Path) -> Path:
    """The file of a study: as named, the copy in a folder of results, or one of the toolkit's own.

    Args:
        path: such as `my_study.yaml`, `results/studies/first`, `esc10` or
            `tools/studies/esc10.yaml`.
    """
    if path.is_dir():
        return path / COPY
    shipped = places.studies() / f"{path.stem}.yaml"
    own_name = str(path) in (shipped.stem, shipped.name, f"tools/studies/{shipped.name}")
    return shipped if own_name and not path.exists() else path


def resolve(path: str) -> Path:
    """A path of a study: in the working directory, or else where the recipes are."""
    here = Path(path)
    return (here if here.exists() else places.home() / path).resolve()


def recipe_folder(recipe: str, trusted: Collection[Path]) -> Path:
    """The folder of a study's recipe, whose train.py will run.

    Args:
        recipe: such as `recipes/ESC50`.
        trusted: folders of recipes that the user has named; those of the toolkit need not be.

    Raises:
        ConfigError: there is no such recipe, or it is one that nobody has named.
    """
    folder = resolve(recipe)
    if not (folder / "train.py").is_file():
        raise ConfigError(f"there is no recipe {recipe}: name a folder with a train.py")
    if folder.parent != places.recipes().resolve() and folder not in trusted:
        raise ConfigError(
            f"the study would run {folder / 'train.py'}, which is not the toolkit's: if you trust "
            f"it, add `--recipe {recipe}`"
        )
    return folder


def check_overrides(where: str, values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a key is none, or is one that the study itself sets."""
    for key in values:
        if not KEY.fullmatch(key):
            raise ConfigError(f"'{where}': {key!r} is no key of a configuration")
        if key in ELSEWHERE:
            raise ConfigError(f"'{where}' cannot set '{key}': {ELSEWHERE[key]}")
