"""A study: which methods are compared on what, as one YAML file says it.

    study: esc10                       names the folder of its results
    question: Which method is best?    printed at the head of the report
    corpora:
      ESC-10: {recipe: recipes/ESC50, data_folder: ESC-10, folds: [1, 2, 3, 4, 5]}
    methods: [lora, 'adapter*', {hparams: softmoa, sweep: {peft.slots: [1, 2]}}]
    backbones: [ast_tiny]
    seeds: [1, 2]
    baseline: linear

Every key is described at the fields below.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from toolkit import places
from toolkit.errors import ConfigError, did_you_mean
from toolkit.settings import Settings, setting

NAME = re.compile(r"[\w.+,=-]+")  # of anything that names a folder
COPY = "study.yaml"

ELSEWHERE = {
    "backbone": "list it in 'backbones'",
    "data_folder": "give it as 'data_folder' of the corpus",
    "few_shot": "list it in 'shots'",
    "folds": "give them as 'folds' of the corpus",
    "seed": "list it in 'seeds'",
    "output_folder": "choose it with `--output` of tools/benchmark.py",
    "debug": "a debug run is no result; set a small 'epochs' to try a study",
    "test_only": "a study trains its runs; use the recipe itself to test one again",
}
"""Keys of a recipe that a study's overrides must leave alone, and where they belong."""


class CorpusSpec(Settings):
    """A recipe, where its data is, and what differs from its configuration."""

    recipe: str = setting("recipes/ESC50", "the folder that holds train.py and hparams/")
    data_folder: str | None = setting(
        None, "the data, below the folder given with `--data`; none: the recipe's embedded corpus"
    )
    folds: list[int] | None = setting(None, "folds, a run each; none: one run of the whole recipe")
    shots: list[int | None] | None = setting(None, "instead of the study's shots")
    seeds: list[int] | None = setting(None, "instead of the study's seeds")
    overrides: dict = setting({}, "keys of the recipe's configuration, such as epochs: 20")

    def check(self) -> None:
        """Overrides leave alone what the study sets."""
        _check_overrides("overrides", self.overrides)


class MethodSpec(Settings):
    """Configurations of methods, and how they are varied."""

    glob: str | None = setting(
        None, "registered names or names of configurations, such as 'lora*'; '*' is all there is"
    )
    hparams: str | None = setting(
        None, "instead of `glob`: the name of one configuration, such as softmoa, or a YAML file"
    )
    name: str | None = setting(None, "names it in the study; none: the configuration's name")
    overrides: dict = setting({}, "keys of the configuration, such as peft.num_experts: 14")
    sweep: dict = setting({}, "key -> list of values; every combination is a method of its own")
    seeds: list[int] | None = setting(None, "instead of the corpus's and the study's seeds")
    corpora: list[str] | None = setting(None, "the study's corpora that it runs on; none: all")
    published: str | None = setting(
        None, "its method's name in published.csv; none: as it is named here"
    )
    size: str | None = setting(
        None, "the setting that a budget of parameters may change; none: found by its name"
    )

    def check(self) -> None:
        """Exactly one of `glob` and `hparams`; a name and a sweep are for one configuration."""
        if (self.glob is None) == (self.hparams is None):
            raise ConfigError("give either 'glob' or 'hparams'")
        if self.name is not None and self.glob is not None:
            raise ConfigError("'name' is for one configuration: give 'hparams', not 'glob'")
        _check_overrides("overrides", self.overrides)
        _check_overrides("sweep", self.sweep)
        for key, values in self.sweep.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"'sweep.{key}' must list values")


class Budget(Settings):
    """What every method may spend; without one, methods run as their configurations say."""

    parameters: int | str | None = setting(
        None, "trainable parameters outside the head, or the method that has as many"
    )
    within: float = setting(10.0, "how far a method may be from that, in %", minimum=0)
    seconds: float | None = setting(None, "or: seconds of training; epochs follow", minimum=0)

    def check(self) -> None:
        """One kind of budget."""
        if (self.parameters is None) == (self.seconds is None):
            raise ConfigError("give either 'parameters' or 'seconds'")


class Study(Settings):
    """See the module's docstring."""

    study: str = setting("", "name of the study")
    question: str = setting("", "what it asks, printed at the head of the report")
    limits: str = setting("", "what it cannot show, printed there too")
    conclusion: str = setting("", "what was found, once somebody has looked at it")
    corpora: dict = setting({}, "name -> see `CorpusSpec`")
    methods: list = setting([], "globs, or mappings: see `MethodSpec`; the first mention counts")
    backbones: list[str] = setting(["ast_tiny"], "registered names, folders or hub ids")
    seeds: list[int] = setting([10], "of initialisation, order and augmentation")
    shots: list[int | None] = setting([None], "training clips a class; none: all")
    overrides: dict = setting({}, "keys of every recipe's configuration")
    budget: dict | None = setting(None, "see `Budget`; none: as configured")
    baseline: str | None = setting(None, "the method that others are compared with")
    timeout_minutes: float | None = setting(None, "a run that takes longer has failed", minimum=0)

    def check(self) -> None:
        """Names that can name folders, and something to run."""
        for key in ("corpora", "methods", "backbones", "seeds", "shots"):
            if not getattr(self, key):
                raise ConfigError(f"'{key}' is empty: name what the study shall run")
        check_name("study", self.study)
        _check_overrides("overrides", self.overrides)
        for name, value in self.corpora.items():
            check_name("corpora", name)
            CorpusSpec.from_mapping(_mapping(value, name), f"corpora.{name}")
        for position, value in enumerate(self.methods):
            if isinstance(value, Mapping):
                spec = MethodSpec.from_mapping(value, f"methods.{position}")
                for name in spec.corpora or ():
                    if name not in self.corpora:
                        known = did_you_mean(name, self.corpora)
                        raise ConfigError(f"methods.{position}: no corpus {name!r}{known}")
        if self.budget is not None:
            Budget.from_mapping(self.budget, "budget")

    @classmethod
    def read(cls, path: Path) -> "Study":
        """Read a study's file, or the copy in the folder of its results.

        Raises:
            ConfigError: no such file, not YAML, or a key that is wrong.
        """
        file = path / COPY if path.is_dir() else path
        try:
            values = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
        except OSError:
            raise ConfigError(
                f"there is no study {file}; name a file such as tools/studies/esc10.yaml, or the "
                "folder of its results"
            ) from None
        except YAMLError as error:
            raise ConfigError(f"{file} is not valid YAML: {error}") from None
        return cls.from_mapping(_mapping(values, str(file)), file.stem)

    def write(self, folder: Path) -> None:
        """Leave a copy beside the results."""
        folder.mkdir(parents=True, exist_ok=True)
        yaml = YAML(typ="safe")
        yaml.sort_base_mapping_type_on_output = False  # a sweep's order is in its methods' names
        with open(folder / COPY, "w", encoding="utf-8") as stream:
            yaml.dump(self.as_dict(), stream)

    @property
    def corpus_specs(self) -> dict[str, CorpusSpec]:
        """The corpora by name."""
        return {n: CorpusSpec.from_mapping(v, f"corpora.{n}") for n, v in self.corpora.items()}

    @property
    def method_specs(self) -> list[MethodSpec]:
        """The entries of `methods`; a word is a glob."""
        return [
            MethodSpec(glob=value)
            if isinstance(value, str)
            else MethodSpec.from_mapping(value, f"methods.{position}")
            for position, value in enumerate(self.methods)
        ]

    @property
    def budget_spec(self) -> Budget | None:
        """The budget, if there is one."""
        return None if self.budget is None else Budget.from_mapping(self.budget, "budget")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study, by what distinguishes it from the others.

    Attributes:
        corpus, method, backbone: names in the study.
        shots: training clips a class; None: all.
        seed: of the run.
        fold: the tested fold; None: all that the recipe has.
    """

    corpus: str
    method: str
    backbone: str
    shots: int | None
    seed: int
    fold: int | None

    @property
    def name(self) -> str:
        """Such as `ESC-10/lora/ast_tiny/all/seed-1/fold-2`; also the run's folder."""
        shots = "all" if self.shots is None else f"{self.shots}-shot"
        fold = "folds" if self.fold is None else f"fold-{self.fold}"
        return "/".join(
            [self.corpus, self.method, short_name(self.backbone), shots, f"seed-{self.seed}", fold]
        )


def short_name(backbone: str) -> str:
    """A backbone's name as a part of a path: `MIT/ast-base` -> `ast-base`."""
    return backbone.rstrip("/").rpartition("/")[2]


def check_name(where: str, name: str) -> None:
    """Refuse a name that cannot name a folder (raise `ConfigError`)."""
    if not NAME.fullmatch(str(name)):
        raise ConfigError(f"'{where}': {name!r} cannot name a folder; use letters, digits, -, _, .")


def resolve(path: str) -> Path:
    """A path of a study: in the working directory, or else where the recipes are."""
    here = Path(path)
    return (here if here.exists() else places.home() / path).resolve()


def _check_overrides(where: str, values: Mapping[str, Any]) -> None:
    """Refuse keys that the study itself sets (raise `ConfigError`)."""
    for key in values:
        if key in ELSEWHERE:
            raise ConfigError(f"'{where}' cannot set '{key}': {ELSEWHERE[key]}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"'{where}' must hold keys and values")
    return value
