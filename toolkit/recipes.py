"""Recipes by name: find one, copy it to edit it, train with it."""

import os
import runpy
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit import config, places, plugins
from toolkit.errors import UnknownName, did_you_mean
from toolkit.files import handed_over

TRAIN = "train.py"
NOT_METHODS = ("base", "embedded", "recipe")
"""Files in `hparams/` that configure a recipe, not a method."""


def known() -> list[str]:
    """Names of the recipes that come with the toolkit."""
    return sorted(file.parent.name for file in places.recipes().glob(f"*/{TRAIN}"))


def find(name: str) -> Path:
    """The folder of a recipe: one in the working directory, or else one of the toolkit's own.

    Raises:
        UnknownName: neither holds a train.py.
    """
    for folder in (Path(name), places.recipes() / name):
        if (folder / TRAIN).is_file():
            return folder
    raise _unknown("recipe", name, known(), f"a folder with a {TRAIN}")


def configuration(recipe: Path, method: str, plugin_folders: Iterable[str | Path] = ()) -> str:
    """The configuration of a method, as a recipe's command line takes it.

    Args:
        recipe: the recipe's folder.
        method: the name of a configuration of the recipe or of a plugin, or a YAML file.
        plugin_folders: see `plugins.load`.

    Raises:
        UnknownName: no configuration has that name.
    """
    if Path(method).suffix in (".yaml", ".yml"):
        return method
    hparams = [file for folder in config.sources(recipe) for file in folder.glob(config.HPARAMS)]
    if method in {file.stem for file in hparams}:
        return f"hparams/{method}.yaml"
    others = [file for folder in plugins.nearest(plugin_folders) for file in folder.glob("*.yaml")]
    for file in others:
        if file.stem == method:
            return os.path.relpath(file)
    names = {file.stem for file in (*hparams, *others)}.difference(NOT_METHODS)
    raise _unknown("configuration", method, sorted(names), "a YAML file")


def project(name: str, method: str) -> list[Path]:
    """The folders of the plugins that lie beside a recipe or its configuration; see `train`."""
    return plugins.of_project(find(name), Path(method))


def train(
    name: str, method: str, arguments: Sequence[str] = (), plugin_folders: Sequence[str] = ()
) -> None:
    """Run a recipe's train.py in this process, as `python NAME/train.py METHOD ...` does.

    Args:
        name: see `find`.
        method: see `configuration`.
        arguments: the rest of the recipe's command line.
        plugin_folders: see `plugins.load`.

    Raises:
        UnknownName: there is no such recipe or no such configuration.
    """
    recipe = find(name)
    if recipe == Path(name) and name in known() and recipe.resolve() != places.recipes() / name:
        print(f"{recipe / TRAIN} is used, not the recipe that comes with the toolkit", flush=True)
    file = str(recipe / TRAIN)
    named = [f"--plugins={folder}" for folder in plugin_folders]
    hparams = configuration(recipe, method, [*plugin_folders, *project(name, method)])
    sys.argv = [file, hparams, *arguments, *named]
    sys.path.insert(0, str(recipe.resolve()))
    runpy.run_path(file, run_name="__main__")


def copy(name: str, place: Path) -> list[Path]:
    """Copy a recipe that comes with the toolkit: its train.py and its `hparams/`.

    Args:
        name: the recipe.
        place: the directory in which a folder of that name is made.

    Returns:
        the copied train.py and `hparams/`.

    Raises:
        UnknownName: no such recipe comes with the toolkit.
        PlaceError: the folder is already there.
    """
    if name not in known():
        raise _unknown("recipe", name, known())
    source, folder = places.recipes() / name, place / name
    with handed_over(folder) as made:
        shutil.copy(source / TRAIN, made)
        shutil.copytree(source / "hparams", made / "hparams")
    return [folder / TRAIN, folder / "hparams"]


def _unknown(kind: str, name: str, names: Sequence[str], other: str = "") -> UnknownName:
    also = f", or {other}" if other else ""
    return UnknownName(
        f"there is no {kind} '{name}'{did_you_mean(name, names)} (known: {', '.join(names)}{also})"
    )
