"""The methods of a study: globs and sweeps expanded to configurations with unique names."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from toolkit import places, plugins
from toolkit.errors import ConfigError, did_you_mean
from toolkit.files import read_text
from toolkit.registry import PEFT
from toolkit.study.plan import Method
from toolkit.study.spec import MethodSpec, Study, check_name, resolve

BASE = "hparams/base.yaml"
NOT_METHODS = ("base", "embedded")


@dataclasses.dataclass(frozen=True)
class ConfiguredMethod(Method):
    """A method together with the configuration that runs it.

    Attributes:
        file: its configuration; None: the base of the recipe with the registered method `peft`.
        overrides: keys that replace those of the configuration.
        seeds: None: those of the corpus or of the study.
        corpora: on which it runs; None: all.
        size: setting that a budget may change; None: found by name.
    """

    file: Path | None
    overrides: Mapping[str, Any]
    seeds: list[int] | None
    corpora: list[str] | None
    size: str | None

    def runs_on(self, corpus: str) -> bool:
        """Whether the study runs it on this corpus."""
        return self.corpora is None or corpus in self.corpora

    def arguments(self, recipe: Path) -> tuple[str, dict[str, Any]]:
        """The configuration file and the overrides that run it with a recipe.

        A file of the recipe itself is used directly. The keys of any other file become overrides of
        the recipe's base, so that the configuration of a plugin works with every recipe.
        """
        if self.file and self.file.parent.name == "hparams":
            own = f"hparams/{self.file.name}"
            if (recipe / own).is_file():
                return own, dict(self.overrides)
        differences = differences_of(self.file) if self.file else {"peft": self.peft}
        return BASE, differences | dict(self.overrides)


def methods_of(study: Study, plugin_folders: Iterable[str] = ()) -> list[ConfiguredMethod]:
    """All methods of a study, in the order of its file.

    Args:
        study: the study.
        plugin_folders: see `plugins.candidates`.

    Raises:
        ConfigError: a glob or a name matches nothing.
    """
    recipes = [resolve(spec.recipe) / "hparams" for spec in study.corpora.values()]
    others = sorted(places.recipes().glob("*/hparams"))  # a method's file works with any recipe
    files = configurations([*recipes, *others, *plugins.nearest(plugin_folders)])
    found: dict[str, ConfiguredMethod] = {}
    for spec in study.methods:
        for method in _expand(spec, files):
            check_name("methods", method.name)
            found.setdefault(method.name, method)
    return list(found.values())


def configurations(folders: Iterable[Path]) -> dict[str, tuple[Path | None, str]]:
    """Find the configurations of methods.

    Args:
        folders: where to look for YAML files; the first file of a name counts.

    Returns:
        name -> file and registered method. Registered methods without a file come last, with None
        for the file.
    """
    found: dict[str, tuple[Path | None, str]] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*.yaml"))):
        method = _method_of(file)
        if method is not None and file.stem not in NOT_METHODS:
            found.setdefault(file.stem, (file, method))
    configured = {method for _, method in found.values()}
    for name in PEFT.names():
        if name not in configured:
            found[name] = (None, name)
    return found


def differences_of(file: Path) -> dict[str, Any]:
    """The keys that a configuration changes in the base that it extends, as overrides.

    Raises:
        ConfigError: it uses YAML tags, which overrides cannot express.
    """
    found: dict[str, Any] = {}
    tree = _read(file)
    parent = tree.pop("extends", None)
    if parent is not None and Path(parent).stem != Path(BASE).stem:
        found = differences_of(places.extended(file, parent))
    for key, value in tree.items():
        if isinstance(value, Mapping) and "name" not in value:
            found.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            found[key] = value
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = YAML(typ="safe").load(read_text(file)) or {}
    except YAMLError as error:  # a tag is the likely one
        raise ConfigError(
            f"{file} cannot be used with another recipe ({str(error).splitlines()[0]}): copy it "
            "into that recipe's hparams/"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold keys and values, such as 'lr: 0.001'")
    return tree


def _method_of(file: Path) -> str | None:
    """The registered method that a configuration names, itself or in the file that it extends; None
    if it names none."""
    tree = YAML().load(read_text(file))
    peft = tree.get("peft") if isinstance(tree, Mapping) else None
    if not isinstance(peft, Mapping) or "name" in peft:
        return peft.get("name") if isinstance(peft, Mapping) else peft
    parent = places.extended(file, str(tree.get("extends")))
    return _method_of(parent) if parent.is_file() else None


def _expand(
    spec: MethodSpec, files: Mapping[str, tuple[Path | None, str]]
) -> list[ConfiguredMethod]:
    if spec.hparams is not None:
        return _sweep(spec, *_named(spec.hparams, files))
    assert spec.glob is not None, "MethodSpec.check requires one of the two"
    if spec.glob in files:
        names = [spec.glob]
    else:
        names = [
            name
            for name, (_, method) in files.items()
            if fnmatch.fnmatch(name, spec.glob) or fnmatch.fnmatch(method, spec.glob)
        ]
    if not names:
        known = {*files, *PEFT.names()}
        raise ConfigError(f"no method matches {spec.glob!r}{did_you_mean(spec.glob, known)}")
    return [method for name in names for method in _sweep(spec, name, *files[name])]


def _named(
    hparams: str, files: Mapping[str, tuple[Path | None, str]]
) -> tuple[str, Path | None, str]:
    if hparams in files:
        return hparams, *files[hparams]
    path = resolve(hparams)
    method = _method_of(path) if path.is_file() else None
    if method is None:
        raise ConfigError(
            f"{hparams!r} is not the configuration of a method{did_you_mean(hparams, files)}; name "
            "one from the hparams/ of a recipe or from a plugin, or a YAML file"
        )
    return path.stem, path, method


def _sweep(
    spec: MethodSpec, configuration: str, file: Path | None, method: str
) -> list[ConfiguredMethod]:
    """One method for each combination of the swept values."""
    series = spec.name or configuration
    found = []
    for values in itertools.product(*spec.sweep.values()):
        factors = dict(zip(spec.sweep, values, strict=True))
        parts = [f"{key.rpartition('.')[2]}={_word(value)}" for key, value in factors.items()]
        found.append(
            ConfiguredMethod(
                name=",".join([series, *parts]),
                series=series,
                file=file,
                peft=method,
                overrides={**spec.overrides, **factors},
                factors=factors,
                seeds=spec.seeds,
                corpora=spec.corpora,
                published=",".join([spec.published or series, *parts]),
                size=spec.size,
            )
        )
    return found


def _word(value: Any) -> str:
    """A swept value as part of a name: `true`, `0.5`, `q+v`."""
    if isinstance(value, list):
        return "+".join(map(_word, value))
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "-")
