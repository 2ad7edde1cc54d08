"""Load a configuration: the file, what it extends, further layers, and the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from toolkit import places
from toolkit.config.arguments import CommandLine
from toolkit.config.configuration import Configuration
from toolkit.config.overrides import expand_names, override_all
from toolkit.config.schema import check_keys
from toolkit.config.tree import dump, parse, tag_of
from toolkit.config.trust import check_tags, construct
from toolkit.errors import ConfigError, did_you_mean
from toolkit.files import read_text

SHARED = "ESC50"
"""The recipe whose method files all recipes can use."""

HPARAMS = "hparams/*.yaml"


def load(command: CommandLine, recipe: Path, layers: Sequence[str] = ()) -> Configuration:
    """Load the configuration that a recipe's command line asks for.

    Args:
        command: the parsed command line.
        recipe: the folder of `train.py`; relative paths are looked up in the working directory
            and then here.
        layers: further files, whose values replace those of the hparams file and are replaced by
            those of the command line (a recipe's `hparams/embedded.yaml`). The values under
            `methods.NAME` of a layer replace its other values if the method is `NAME`.

    Raises:
        ConfigError: a file, a key, a value or a tag that is refused.
    """
    path = _locate(command.hparams, recipe)
    tree, schema = _read_extended(path)
    over = [_read(_locate(layer, recipe)) for layer in layers]
    of_methods = [layer.pop("methods", {}) for layer in over]
    for layer in over:
        _merge(tree, layer)
    override_all(tree, command.overrides)
    for of_method in of_methods:
        _merge(tree, of_method.get(tree["peft"]["name"], {}))
    if of_methods:
        override_all(tree, command.overrides)
    check_tags(tree, command.trust)
    check_keys(tree, schema, command.trust)
    return construct(tree, path.stem, command.trust)


def recipe_of(path: Path) -> Path:
    """The `train.py` of the recipe whose base a configuration extends.

    Raises:
        ConfigError: the file does not exist, or it extends no recipe's configuration.
    """
    if not path.is_file():
        raise ConfigError(
            f"there is no configuration {path}: name one of a recipe's hparams/ or of a plugin, "
            "such as plugins/NAME/NAME.yaml"
        )
    files, _ = _read_chain(path)
    train = files[-1].resolve().parents[1] / "train.py"
    if not train.is_file():
        raise ConfigError(
            f"{path} belongs to no recipe ({train} does not exist): let it extend a recipe's "
            "hparams/base.yaml"
        )
    return train


def sources(recipe: Path) -> list[Path]:
    """The folders whose `hparams/` a recipe can use: its own, then the one that recipes share.

    A recipe that was copied elsewhere finds the shared one among those that come with the toolkit.
    """
    return [recipe, recipe.parent / SHARED, places.recipes() / SHARED]


def _locate(name: str, recipe: Path) -> Path:
    """A file in the working directory or, failing that, in one of the recipe's sources."""
    for folder in (Path(), *sources(recipe)):
        if (folder / name).is_file():
            return folder / name
    known = sorted({file.stem for folder in sources(recipe) for file in folder.glob(HPARAMS)})
    files = ", ".join(f"hparams/{stem}.yaml" for stem in known)
    raise ConfigError(
        f"there is no configuration {name}{did_you_mean(Path(name).stem, known)} "
        f"(looked in the working directory and in {recipe}; known: {files})"
    )


def _read(path: Path) -> CommentedMap:
    tree = parse(read_text(path), str(path))
    if not isinstance(tree, CommentedMap) or tag_of(tree):
        raise ConfigError(f"{path} must hold keys and values")
    expand_names(tree)
    return tree


def _read_extended(path: Path) -> tuple[CommentedMap, CommentedMap]:
    """A file merged over all files that it extends, and the outermost of them by itself."""
    files, trees = _read_chain(path)
    tree, schema = trees[-1], parse(dump(trees[-1]), str(files[-1]))
    for child in reversed(trees[:-1]):
        _merge(tree, child)
    return tree, schema


def _read_chain(path: Path) -> tuple[list[Path], list[CommentedMap]]:
    """A file and all files that it extends, the outermost last."""
    chain = [path]
    trees = [_read(path)]
    while "extends" in trees[-1]:
        parent = places.extended(chain[-1], str(trees[-1].pop("extends")))
        circular = parent.resolve() in map(Path.resolve, chain)
        if circular or not parent.is_file():
            raise ConfigError(
                f"{chain[-1]} extends {parent}, which "
                + ("extends it in turn" if circular else "does not exist")
            )
        chain.append(parent)
        trees.append(_read(parent))
    return chain, trees


def _merge(tree: CommentedMap, child: CommentedMap) -> None:
    """Put a child's values over a tree's; mappings are merged if they describe the same thing."""
    for key, value in child.items():
        old = tree.get(key)
        if _same(old, value):
            _merge(old, value)
        else:
            tree[key] = value


def _same(old: Any, new: Any) -> bool:
    """Whether two values are mappings of the same tag and name."""
    return (
        isinstance(old, CommentedMap)
        and isinstance(new, CommentedMap)
        and tag_of(new) in ("", tag_of(old))
        and new.get("name", old.get("name")) == old.get("name")
    )
