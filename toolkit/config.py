"""Configurations: HyperPyYAML files that extend each other, overridden from the command line.

A file may begin with `extends: other.yaml` and then holds only what differs. The outermost file
defines which keys exist: a key that it lacks is refused wherever it comes from, and so is a
setting that a registered thing or a constructed callable does not take. Callables are constructed
from an allow-list only (`toolkit.`, `speechbrain.`, `torch.` and loaded plugins) unless the user
says `--trust`.
"""

import dataclasses
import hashlib
import inspect
import json
import pydoc
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML, Loader, SafeLoader, YAMLError
from ruamel.yaml.comments import CommentedMap, CommentedSeq, CommentedSet

from toolkit import plugins
from toolkit.errors import ConfigError, did_you_mean
from toolkit.registry import REGISTRIES

ALLOWED = ("toolkit", "speechbrain", "torch", plugins.PACKAGE)
CALLABLE_TAGS = ("!new:", "!name:", "!apply:")
SHARED = "ESC50"
"""The recipe, beside a recipe, whose files of methods it uses where it has none of that name."""

HPARAMS = "hparams/*.yaml"
PLAIN_TAGS = ("!ref", "!copy", "!PLACEHOLDER")


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What a user typed after `train.py`.

    Attributes:
        hparams: the configuration file as typed.
        overrides: dotted key -> value, e.g. `{"peft.slots": 2}`.
        plugins: folders given with `--plugins`.
        trust: whether any callable may be constructed.
    """

    hparams: str
    overrides: dict[str, Any]
    plugins: list[str]
    trust: bool


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A loaded configuration.

    Attributes:
        values: top-level keys -> values and constructed objects.
        text: the merged YAML, references resolved; loading it gives the same again.
        name: the hparams file's name without its suffix.
    """

    values: dict[str, Any]
    text: str
    name: str

    @property
    def flat(self) -> dict[str, Any]:
        """See `flatten`."""
        return flatten(self.text)

    def digest(self, ignore: Sequence[str] = ()) -> str:
        """Hash of everything but some top-level keys."""
        kept = {k: v for k, v in self.flat.items() if k.split(".")[0] not in ignore}
        text = json.dumps(kept, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read `HPARAMS [--key value | --key=value | --flag] ...`.

    Raises:
        ConfigError: no hparams file, or more than one.
    """
    files, options = _split_options(arguments)
    if len(files) != 1:
        raise ConfigError(
            "name one configuration file, e.g. `train.py hparams/softmoa.yaml --seed 1`"
            + (f", not {len(files)}: {', '.join(files)}" if files else "")
        )
    folders = [text for key, text in options if key == "plugins"]
    overrides = {k: _parse(text, f"--{k}") for k, text in options if k != "plugins"}
    trust = overrides.pop("trust", False)
    return CommandLine(files[0], overrides, folders, trust is True)


def parse_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `--avg-bits 2.5 --fast` as `{"avg_bits": 2.5, "fast": True}`.

    Raises:
        ConfigError: a word that belongs to no option.
    """
    words, options = _split_options(arguments)
    if words:
        raise ConfigError(f"what is {words[0]!r}? Settings are given as --name value")
    return {key.replace("-", "_"): _parse(text, f"--{key}") for key, text in options}


def _split_options(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Words by themselves, and options with their text (`true` for a flag)."""
    words: list[str] = []
    options: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        key, given, text = word[2:].partition("=")
        if not given:
            text = queue.pop(0) if queue and not queue[0].startswith("--") else "true"
        options.append((key, text))
    return words, options


def load(command: CommandLine, recipe: Path, layers: Sequence[str] = ()) -> Configuration:
    """Load a configuration as a recipe's `train.py` was asked for it.

    Args:
        command: the parsed command line.
        recipe: the folder of `train.py`; relative paths are looked up here after the working
            directory.
        layers: further files whose values go over those of the hparams file, and under the
            command line's (a recipe's `hparams/embedded.yaml`). What such a file holds under
            `methods` goes over the rest of it for the method of that name.

    Raises:
        ConfigError: see the module's docstring.
    """
    path = _locate(command.hparams, recipe)
    tree, schema = _read_extended(path)
    over = [_read(_locate(layer, recipe)) for layer in layers]
    of_methods = [layer.pop("methods", {}) for layer in over]
    for layer in over:
        _merge(tree, layer)
    _override_all(tree, command)
    for of_method in of_methods:
        _merge(tree, of_method.get(tree["peft"]["name"], {}))
    if of_methods:
        _override_all(tree, command)
    _check(tree, schema, trusted=command.trust)
    return _construct(tree, path.stem, trusted=command.trust)


def recipe_of(path: Path) -> Path:
    """The train.py of the recipe whose base a configuration extends: beside its `hparams/`.

    Raises:
        ConfigError: there is no such file, or it extends no recipe's.
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


class _NoTuples:
    """Leaves `(1, 2)` the text that it is: HyperPyYAML would run any tag between the brackets."""

    @classmethod
    def add_implicit_resolver(cls, *arguments: Any, **options: Any) -> None:
        """Takes none."""


class _CheckedLoader(_NoTuples, SafeLoader):
    """Makes what HyperPyYAML adds to YAML, but nothing that Python's own tags describe."""


class _TrustingLoader(_NoTuples, Loader):
    """Makes anything."""


def _construct(tree: CommentedMap, name: str, trusted: bool) -> Configuration:
    text = _dump(tree)
    try:
        resolved = resolve_references(text).getvalue()
        loader = _TrustingLoader if trusted else _CheckedLoader
        return Configuration(load_hyperpyyaml(resolved, loader=loader), resolved, name)
    except ConfigError:
        raise
    except Exception as error:  # HyperPyYAML raises many kinds, with the key in the message
        detail = " ".join(str(part) for part in error.args)
        raise ConfigError(f"the configuration cannot be built: {detail}") from error


def _locate(name: str, recipe: Path) -> Path:
    """A file in the working directory, or beside the recipe's train.py, or one that all share."""
    shared = recipe.parent / SHARED
    for folder in (Path(), recipe, shared):
        if (folder / name).is_file():
            return folder / name
    known = sorted({f"hparams/{f.name}" for r in (recipe, shared) for f in r.glob(HPARAMS)})
    raise ConfigError(
        f"there is no configuration {name}{did_you_mean(name, known)} "
        f"(looked in the working directory and in {recipe}; known: {', '.join(known)})"
    )


def _read(path: Path) -> CommentedMap:
    tree = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, CommentedMap) or _tag(tree):
        raise ConfigError(f"{path} must hold keys and values")
    _name_registered(tree)
    return tree


def _parse(text: str, origin: str) -> Any:
    try:
        return YAML().load(text)
    except YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from None


def _dump(tree: Any) -> str:
    stream = StringIO()
    YAML().dump(tree, stream)
    return stream.getvalue()


def _read_extended(path: Path) -> tuple[CommentedMap, CommentedMap]:
    """A file merged over all that it extends, and the outermost file itself."""
    files, trees = _read_chain(path)
    tree, schema = trees[-1], _parse(_dump(trees[-1]), str(files[-1]))
    for child in reversed(trees[:-1]):
        _merge(tree, child)
    return tree, schema


def _read_chain(path: Path) -> tuple[list[Path], list[CommentedMap]]:
    """A file and all that it extends, the outermost last."""
    chain = [path]
    trees = [_read(path)]
    while "extends" in trees[-1]:
        parent = chain[-1].parent / str(trees[-1].pop("extends"))
        circular = parent.resolve() in map(Path.resolve, chain)
        if circular or not parent.is_file():
            raise ConfigError(
                f"{chain[-1]} extends {parent}, which "
                + ("extends it in turn" if circular else "does not exist")
            )
        chain.append(parent)
        trees.append(_read(parent))
    return chain, trees


def _tag(node: Any) -> str:
    return (node.tag.value or "") if hasattr(node, "tag") else ""


def _merge(tree: CommentedMap, child: CommentedMap) -> None:
    """Put a child's values over a tree's: mappings are merged unless they are another thing."""
    for key, value in child.items():
        old = tree.get(key)
        same = (
            isinstance(old, CommentedMap)
            and isinstance(value, CommentedMap)
            and _tag(value) in ("", _tag(old))
            and value.get("name", old.get("name")) == old.get("name")
        )
        if same:
            _merge(old, value)
        else:
            tree[key] = value


def _override_all(tree: CommentedMap, command: CommandLine) -> None:
    for key, value in command.overrides.items():
        _override(tree, key, value)


def _override(tree: CommentedMap, key: str, value: Any) -> None:
    """Set a dotted key; every step but the last must lead to a mapping or a list."""
    *path, last = key.split(".")
    node: Any = tree
    if path and path[0] in REGISTRIES and tree.get(path[0], "") is None:
        tree[path[0]] = CommentedMap()  # `--pipeline.name x` where there was none
    for step in path:
        node = _child(node, step, key)
    if isinstance(node, CommentedSeq):
        _child(node, last, key)
        node[int(last)] = value
    elif isinstance(node, CommentedMap):
        node[last] = value
    else:
        raise ConfigError(f"'--{key}' leads into '{path[-1]}', which is a single value")
    _name_registered(tree)


def _name_registered(tree: CommentedMap) -> None:
    """Write `peft: lora` as `peft: {name: lora}`, and so for all registered things."""
    for key in REGISTRIES:
        if isinstance(tree.get(key), str):
            tree[key] = CommentedMap(name=tree[key])


def _child(node: Any, step: str, key: str) -> Any:
    if isinstance(node, CommentedSeq):
        if not step.isdigit() or int(step) >= len(node):
            raise ConfigError(f"'--{key}': '{step}' is not a place in a list of {len(node)}")
        return node[int(step)]
    if not isinstance(node, CommentedMap) or step not in node:
        known = node if isinstance(node, CommentedMap) else ()
        raise ConfigError(f"unknown key '{step}' in '--{key}'{did_you_mean(step, known)}")
    return node[step]


def _check(tree: CommentedMap, schema: CommentedMap, trusted: bool) -> None:
    """Refuse unknown keys at every depth, and callables outside the allow-list."""
    for key, value in tree.items():
        if key not in schema:
            raise ConfigError(f"unknown key '{key}'{did_you_mean(key, schema)}")
        if value is None and schema[key] is None:
            continue
        if key in REGISTRIES and (not isinstance(value, CommentedMap) or _tag(value)):
            raise ConfigError(f"'{key}' must be a name, or a mapping with a name, not {value!r}")
        # The settings of registered things are checked when these are made from them.
        _check_node(key, value, None if key in REGISTRIES else schema[key], trusted)


def _check_node(where: str, node: Any, schema: Any, trusted: bool) -> None:
    tag = _tag(node)
    if tag.startswith(CALLABLE_TAGS):
        known = _parameters(where, tag, trusted)
    elif tag and not tag.startswith(PLAIN_TAGS) and not trusted:
        raise ConfigError(f"'{where}' uses the YAML tag {tag}, which only `--trust` allows")
    else:
        known = schema if isinstance(schema, CommentedMap) and not _tag(schema) else None
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            if not isinstance(key, str | int | float):
                raise ConfigError(f"'{where}' has a key that is neither a word nor a number")
            if known is not None and key not in known:
                raise ConfigError(
                    f"unknown key '{where}.{key}'{did_you_mean(key, known)}"
                    f" (known: {', '.join(known)})"
                )
            inner = known[key] if isinstance(known, CommentedMap) else None
            _check_node(f"{where}.{key}", value, inner, trusted)
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            _check_node(f"{where}.{index}", value, None, trusted)
    elif isinstance(node, CommentedSet):
        raise ConfigError(f"'{where}' is a YAML set; write it as a list")


def _parameters(where: str, tag: str, trusted: bool) -> list[str] | None:
    """Names of the parameters that a tag's callable takes; None if it takes any."""
    kind, _, path = tag.partition(":")
    target = _locate_callable(where, path, trusted)
    if kind == "!apply" and not trusted:
        raise ConfigError(
            f"'{where}' calls {path} while the configuration is read, which only `--trust` allows"
        )
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def _locate_callable(where: str, path: str, trusted: bool) -> Any:
    """Import a dotted path step by step, never leaving the allowed packages.

    A prefix alone would let `torch.os.system` pass.
    """
    if not trusted:
        package, *steps = path.split(".")
        target: Any = pydoc.locate(package) if package in ALLOWED else None
        for step in steps:
            if isinstance(target, ModuleType):
                inner = pydoc.locate(f"{target.__name__}.{step}")
                name = inner.__name__ if isinstance(inner, ModuleType) else target.__name__
                target = inner if name.split(".")[0] == package else None
            else:
                target = getattr(target, step, None)
        home = getattr(target, "__module__", None) or package
        if target is None or isinstance(target, ModuleType) or home.split(".")[0] not in ALLOWED:
            raise ConfigError(
                f"'{where}' names {path}, which is not a callable of "
                f"{', '.join(a + '.' for a in ALLOWED)} (any callable is allowed with `--trust`)"
            )
        return target
    target = pydoc.locate(path)
    if target is None:
        raise ConfigError(f"'{where}' names {path}, which does not exist")
    return target


def flatten(text: str) -> dict[str, Any]:
    """A configuration's text as dotted key -> plain value, for comparing and recording."""
    return dict(_flatten(_parse(text, "the configuration")))


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    tag = _tag(node)
    if isinstance(node, CommentedMap | CommentedSeq):
        if tag:
            yield f"{prefix}.!" if prefix else "!", tag
        items = node.items() if isinstance(node, CommentedMap) else enumerate(node)
        for key, value in items:
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, f"{tag} {node.value}".strip() if tag else node
