"""Registries: one generic class, and an instance for each kind of part.

A decorator registers a thing where it is written:

    @PEFT.register("soft_moa", paper="arXiv:2402.00828")
    class SoftMoA(PeftMethod): ...

The library's own modules are not imported to be listed: their decorators are found in the
source text, and a module is imported when one of its entries is asked for. So `toolkit list`
needs neither torch nor transformers.
"""

import ast
import dataclasses
import fnmatch
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ruamel.yaml import YAML

from toolkit.errors import ConfigError, DuplicateName, UnknownName, did_you_mean
from toolkit.settings import Settings

if TYPE_CHECKING:  # for the type checker alone: at run time the registry knows none of them
    from toolkit.backbones.base import BackboneSource
    from toolkit.data.manifest import Corpus
    from toolkit.features.pipeline import Pipeline
    from toolkit.mixtures.tool import MixtureTool
    from toolkit.peft.base import PeftMethod
    from toolkit.training.search import Search

T = TypeVar("T", bound=Settings)
C = TypeVar("C", bound=type[Settings])


@dataclasses.dataclass
class Entry(Generic[T]):
    """One registered thing.

    Attributes:
        name: what a configuration calls it.
        description: the first line of its docstring.
        origin: `file:line` of its definition.
        module: where it is defined; imported when the entry is asked for.
        metadata: keywords given to `register`, such as `paper`.
        target: the class itself, or None while its module is not imported.
    """

    name: str
    description: str
    origin: str
    module: str
    metadata: dict[str, Any]
    target: type[T] | None = None


class Registry(Generic[T]):
    """Names -> settings classes of one kind; `T` is their base class.

    Args:
        variable: the name under which modules import this registry, e.g. `"PEFT"`.
        key: the key of such a thing in a configuration, e.g. `"peft"`.
        kind: what an entry is, in messages, e.g. `"PEFT method"`.
        package: the package whose modules hold the library's own entries.
    """

    def __init__(self, variable: str, key: str, kind: str, package: str) -> None:
        self.variable, self.key, self.kind, self.package = variable, key, kind, package
        self._entries: dict[str, Entry[T]] = {}
        self._scanned = False

    def register(self, name: str, **metadata: Any) -> Callable[[C], C]:
        """Decorator that registers a class under `name`.

        Args:
            name: unique among this registry's entries.
            metadata: anything worth showing, by convention `paper` (arXiv id or citation).

        Raises:
            DuplicateName: another place has registered that name.
        """
        caller = sys._getframe(1)
        origin = f"{caller.f_code.co_filename}:{caller.f_lineno}"

        def decorate(target: C) -> C:
            entry = Entry(
                name=name,
                description=_first_line(target.__doc__),
                origin=origin,
                module=target.__module__,
                metadata=metadata,
                target=target,
            )
            self._add(entry)
            target.registered_name = name
            return target

        return decorate

    def _add(self, entry: Entry[T]) -> None:
        self._scan()
        known = self._entries.get(entry.name)
        if known is not None and known.origin != entry.origin:
            raise DuplicateName(
                f"the {self.kind} '{entry.name}' is registered twice: at {known.origin} "
                f"and at {entry.origin}; rename one of them"
            )
        self._entries[entry.name] = entry

    def _scan(self) -> None:
        """Find the library's own entries by reading its source text, once."""
        if self._scanned:
            return
        self._scanned = True
        for folder in find_spec(self.package).submodule_search_locations:
            for file in sorted(Path(folder).glob("*.py")):
                for entry in _registrations(file, self.variable, f"{self.package}.{file.stem}"):
                    self._add(entry)

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names that match a shell-style pattern."""
        self._scan()
        return sorted(fnmatch.filter(self._entries, pattern))

    def entry(self, name: str) -> Entry[T]:
        """The entry of that name, its module imported.

        Raises:
            UnknownName: no such entry; the nearest names are suggested.
        """
        self._scan()
        if name not in self._entries:
            raise UnknownName(
                f"no {self.kind} is called {name!r}{did_you_mean(name, self._entries)} "
                f"(`toolkit list` shows all)"
            )
        if self._entries[name].target is None:
            importlib.import_module(self._entries[name].module)
        return self._entries[name]

    def peek(self, name: str) -> Entry[T]:
        """The entry of that name without importing its module (for listings)."""
        self._scan()
        return self._entries[name]

    def get(self, name: str) -> type[T]:
        """The registered class of that name."""
        target = self.entry(name).target
        assert target is not None  # `entry` has imported its module
        return target

    def create(self, config: str | Mapping[str, Any], where: str | None = None) -> T:
        """Make an instance from `"name"` or from `{"name": ..., setting: value, ...}`.

        Args:
            config: the part of the configuration that describes the thing.
            where: what error messages call that part; the registry's key by default.

        Raises:
            UnknownName, ConfigError: see `Settings.from_mapping`.
        """
        where = where or self.key
        config = {"name": config} if isinstance(config, str) else dict(config)
        if not isinstance(config.get("name"), str):
            raise ConfigError(
                f"'{where}' needs a 'name': one of {', '.join(self.names())} (a {self.kind})"
            )
        return self.get(config.pop("name")).from_mapping(config, where)

    def snapshot(self) -> frozenset[str]:
        """The names as they are, for `restore`."""
        self._scan()
        return frozenset(self._entries)

    def restore(self, names: frozenset[str]) -> None:
        """Undo every registration since `snapshot`.

        An entry that was there stays as it is now: its module may have been imported since, and
        a module is imported but once.
        """
        self._entries = {name: self._entries[name] for name in names}


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0].strip()


def _registrations(file: Path, variable: str, module: str) -> list[Entry]:
    """Entries that the decorators `@variable.register("name", ...)` of a source file define."""
    entries = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            if not (
                isinstance(decorator, ast.Call)
                and ast.unparse(decorator.func) == f"{variable}.register"
            ):
                continue
            entries.append(
                Entry(
                    name=ast.literal_eval(decorator.args[0]),
                    description=_first_line(ast.get_docstring(node)),
                    origin=f"{file}:{decorator.lineno}",
                    module=module,
                    metadata={k.arg: ast.literal_eval(k.value) for k in decorator.keywords},
                )
            )
    return entries


def parse_spec(text: str) -> dict[str, Any]:
    """`"soft_moa:num_experts=14,placement=ffn"` -> `{"name": "soft_moa", "num_experts": 14, ...}`.

    Values are read as YAML; commas inside brackets do not separate settings.

    Raises:
        ConfigError: a setting without a value.
    """
    name, _, settings = text.partition(":")
    config: dict[str, Any] = {"name": name}
    for pair in re.split(r",(?![^\[]*\])", settings) if settings else []:
        key, given, value = pair.partition("=")
        if not given:
            raise ConfigError(f"'{text}': write settings as key=value, not {pair!r}")
        config[key.strip()] = YAML(typ="safe").load(value)
    return config


BACKBONES: "Registry[BackboneSource]" = Registry(
    "BACKBONES", "backbone", "backbone", "toolkit.backbones"
)
PEFT: "Registry[PeftMethod]" = Registry("PEFT", "peft", "PEFT method", "toolkit.peft")
PIPELINES: "Registry[Pipeline]" = Registry(
    "PIPELINES", "pipeline", "data pipeline", "toolkit.features"
)
CORPORA: "Registry[Corpus]" = Registry("CORPORA", "corpus", "corpus", "toolkit.data.corpora")
TOOLS: "Registry[MixtureTool]" = Registry(
    "TOOLS", "tool", "tool on a trained mixture", "toolkit.mixtures"
)
SEARCHES: "Registry[Search]" = Registry(
    "SEARCHES", "search", "architecture search", "toolkit.training"
)

REGISTRIES: dict[str, Registry[Any]] = {
    registry.key: registry for registry in (PEFT, BACKBONES, CORPORA, PIPELINES, TOOLS, SEARCHES)
}
