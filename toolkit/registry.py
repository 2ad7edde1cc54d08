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
from typing import Any, TypeVar

from ruamel.yaml import YAML

from toolkit.errors import ConfigError, DuplicateName, UnknownName, did_you_mean

T = TypeVar("T")


@dataclasses.dataclass
class Entry:
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
    target: type | None = None


class Registry:
    """Names -> settings classes of one kind.

    Args:
        variable: the name under which modules import this registry, e.g. `"PEFT"`.
        kind: what an entry is, in messages, e.g. `"PEFT method"`.
        package: the package whose modules hold the library's own entries.
    """

    def __init__(self, variable: str, kind: str, package: str) -> None:
        self.variable, self.kind, self.package = variable, kind, package
        self._entries: dict[str, Entry] = {}
        self._scanned = False

    def register(self, name: str, **metadata: Any) -> Callable[[type[T]], type[T]]:
        """Decorator that registers a class under `name`.

        Args:
            name: unique among this registry's entries.
            metadata: anything worth showing, by convention `paper` (arXiv id or citation).

        Raises:
            DuplicateName: another place has registered that name.
        """
        caller = sys._getframe(1)
        origin = f"{caller.f_code.co_filename}:{caller.f_lineno}"

        def decorate(target: type[T]) -> type[T]:
            entry = Entry(
                name=name,
                description=_first_line(target.__doc__),
                origin=origin,
                module=target.__module__,
                metadata=metadata,
                target=target,
            )
            self._add(entry)
            target.registered_name = name  # type: ignore[attr-defined]
            return target

        return decorate

    def _add(self, entry: Entry) -> None:
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

    def entry(self, name: str) -> Entry:
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

    def peek(self, name: str) -> Entry:
        """The entry of that name without importing its module (for listings)."""
        self._scan()
        return self._entries[name]

    def get(self, name: str) -> type:
        """The registered class of that name."""
        return self.entry(name).target

    def create(self, config: str | Mapping[str, Any], where: str) -> Any:
        """Make an instance from `"name"` or from `{"name": ..., setting: value, ...}`.

        Args:
            config: the part of the configuration that describes the thing.
            where: its key in the configuration, for error messages.

        Raises:
            UnknownName, ConfigError: see `Settings.from_mapping`.
        """
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


BACKBONES = Registry("BACKBONES", "backbone", "toolkit.backbones")
PEFT = Registry("PEFT", "PEFT method", "toolkit.peft")
PIPELINES = Registry("PIPELINES", "data pipeline", "toolkit.data")
CORPORA = Registry("CORPORA", "corpus", "toolkit.data.corpora")
TOOLS = Registry("TOOLS", "tool on a trained mixture", "toolkit.tools")
SEARCHES = Registry("SEARCHES", "architecture search", "toolkit.tools")

REGISTRIES = {
    "peft": PEFT,
    "backbone": BACKBONES,
    "corpus": CORPORA,
    "pipeline": PIPELINES,
    "tool": TOOLS,
    "search": SEARCHES,
}
