"""Registries: one generic class, and an instance for each kind of thing.

A decorator registers a class where it is written:

    @PEFT.register("soft_moa", paper="arXiv:2402.00828")
    class SoftMoA(PeftMethod): ...

Nothing is imported to be listed, neither the library's own modules nor plugins: decorators are
found by reading the source text, and a module is imported when one of its entries is asked for.
So `toolkit list` needs neither torch nor transformers.
"""

import ast
import dataclasses
import fnmatch
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from toolkit.errors import ConfigError, DuplicateName, PluginError, UnknownName, did_you_mean
from toolkit.foreign import blamed
from toolkit.settings import Settings

if TYPE_CHECKING:  # at run time the registry knows none of the classes that it holds
    from toolkit.backbones.base import BackboneSource
    from toolkit.data.manifest import Corpus
    from toolkit.features.pipeline import Pipeline
    from toolkit.mixtures.tool import MixtureTool
    from toolkit.peft.base import PeftMethod
    from toolkit.training.search import Search

T = TypeVar("T", bound=Settings)
C = TypeVar("C", bound=Settings)


@dataclasses.dataclass
class Entry(Generic[T]):
    """One registered class.

    Attributes:
        name: what a configuration calls it.
        description: the first line of its docstring.
        origin: `file:line` of its definition.
        module: where it is defined; imported when the entry is asked for.
        metadata: keywords given to `register`, such as `paper`.
        plugin: the plugin that registers it; empty if it is one of the library's own.
        target: the class itself, or None while its module is not imported.
    """

    name: str
    description: str
    origin: str
    module: str
    metadata: dict[str, Any]
    plugin: str = ""
    target: type[T] | None = None


class Registry(Generic[T]):
    """Names -> settings classes of one kind; `T` is their base class.

    Args:
        variable: the name under which modules import this registry, e.g. `"PEFT"`.
        key: the key of such a thing in a configuration, e.g. `"peft"`.
        kind: what messages call an entry, e.g. `"PEFT method"`.
        package: the package whose modules hold the library's own entries.
        base: path of the class that all entries extend; None: they extend none.
    """

    def __init__(
        self, variable: str, key: str, kind: str, package: str, base: str | None = None
    ) -> None:
        self.variable, self.key, self.kind, self.package = variable, key, kind, package
        self.base = base
        self._entries: dict[str, Entry[T]] = {}
        self._scanned = False

    def register(self, name: str, **metadata: Any) -> Callable[[type[C]], type[C]]:
        """Decorator that registers a class under `name`.

        Write the name and the metadata as literals: listings read them from the source text.

        Args:
            name: unique among this registry's entries.
            metadata: anything worth showing, by convention `paper` (arXiv id or citation).

        Raises:
            DuplicateName: the name is registered elsewhere.
        """
        caller = sys._getframe(1)
        origin = f"{caller.f_code.co_filename}:{caller.f_lineno}"

        def decorate(target: type[C]) -> type[C]:
            entry = Entry(
                name=name,
                description=_first_line(target.__doc__),
                origin=origin,
                module=target.__module__,
                metadata=metadata,
                target=cast(type[T], target),
            )
            self.add(entry)
            target.registered_name = name
            return target

        return decorate

    def add(self, entry: Entry[T]) -> None:
        """Add an entry, or replace the one of the same name and origin.

        Raises:
            DuplicateName: the name is registered elsewhere.
        """
        self._scan()
        known = self._entries.get(entry.name)
        if known is not None:
            if known.origin != entry.origin:
                raise DuplicateName(
                    f"the {self.kind} '{entry.name}' is registered twice: at {known.origin} "
                    f"and at {entry.origin}; rename one of them"
                )
            entry.plugin = known.plugin
        self._entries[entry.name] = entry

    def _scan(self) -> None:
        """Find the library's own entries by reading its source text, once."""
        if self._scanned:
            return
        self._scanned = True
        spec = find_spec(self.package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for file in sorted(Path(folder).glob("*.py")):
                if b".register(" not in file.read_bytes():  # parsing takes longer
                    continue
                for variable, entry in read_entries(file, f"{self.package}.{file.stem}"):
                    if variable == self.variable:
                        self.add(entry)

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names that match a shell-style pattern."""
        self._scan()
        return sorted(fnmatch.filter(self._entries, pattern))

    def peek(self, name: str) -> Entry[T]:
        """The entry of that name; its module is not imported.

        Raises:
            UnknownName: no such entry; the nearest names are suggested.
        """
        self._scan()
        if name not in self._entries:
            raise UnknownName(
                f"no {self.kind} is called {name!r}{did_you_mean(name, self._entries)} "
                f"(`toolkit list` shows all)"
            )
        return self._entries[name]

    def entry(self, name: str) -> Entry[T]:
        """The entry of that name, with its module imported.

        Raises:
            UnknownName: no such entry; the nearest names are suggested.
            PluginError: its module belongs to a plugin and cannot be imported.
        """
        entry = self.peek(name)
        if entry.target is None:
            _import(entry)
        return self._entries[name]

    def get(self, name: str) -> type[T]:
        """The registered class of that name; see `entry`.

        Raises:
            PluginError: it is not a class of this kind, or lacks a method that all of them have.
        """
        entry = self.entry(name)
        assert entry.target is not None  # `entry` has imported its module
        self._require_kind(entry, entry.target)
        return entry.target

    def _require_kind(self, entry: Entry[T], target: type[T]) -> None:
        if self.base is None:
            return
        module, _, base = self.base.rpartition(".")
        if not issubclass(target, getattr(importlib.import_module(module), base)):
            raise PluginError(
                f"'{entry.name}' at {entry.origin} is registered as a {self.kind} and is none: "
                f"write `class {target.__name__}({base})` (`from {module} import {base}`)"
            )
        missing = sorted(getattr(target, "__abstractmethods__", ()))
        if missing:
            raise PluginError(
                f"the {self.kind} '{entry.name}' at {entry.origin} does not define "
                f"{', '.join(f'{method}()' for method in missing)}, which every {self.kind} must"
            )

    def create(self, config: str | Mapping[str, Any], where: str | None = None) -> T:
        """Make an instance from `"name"` or from `{"name": ..., setting: value, ...}`.

        Args:
            config: the part of the configuration that describes the thing.
            where: what error messages call that part; the registry's key by default.

        Raises:
            UnknownName: no such entry.
            ConfigError: no name, an unknown setting, or a value that a setting does not take.
        """
        where = where or self.key
        config = {"name": config} if isinstance(config, str) else dict(config)
        if not isinstance(config.get("name"), str):
            raise ConfigError(
                f"'{where}' needs a 'name': one of {', '.join(self.names())} (a {self.kind})"
            )
        return self.get(config.pop("name")).from_mapping(config, where)

    def snapshot(self) -> frozenset[str]:
        """The present names, for `restore`."""
        self._scan()
        return frozenset(self._entries)

    def restore(self, names: frozenset[str]) -> None:
        """Undo every registration since `snapshot`.

        An entry that was there before keeps its class if its module has been imported since: a
        module is imported only once.
        """
        self._entries = {name: self._entries[name] for name in names}
        for entry in self._entries.values():
            if entry.plugin and entry.module not in sys.modules:
                entry.target = None


def read_entries(file: Path, module: str, plugin: str = "") -> Iterator[tuple[str, Entry[Any]]]:
    """The entries that a source file defines, found without importing it.

    Args:
        file: a Python file.
        module: the name under which it is imported.
        plugin: the plugin that it belongs to, if any.

    Yields:
        for every class decorated with `@VARIABLE.register("name", ...)`: the variable, and the
        entry.

    Raises:
        SyntaxError: the file is not Python.
        PluginError: a decorator's arguments are not literals.
    """
    for node in ast.parse(file.read_bytes(), file).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            if not isinstance(decorator, ast.Call):
                continue
            variable, _, function = ast.unparse(decorator.func).rpartition(".")
            if function != "register":
                continue
            origin = f"{file}:{decorator.lineno}"
            try:
                name = ast.literal_eval(decorator.args[0])
                metadata = {str(k.arg): ast.literal_eval(k.value) for k in decorator.keywords}
            except (ValueError, IndexError):
                raise PluginError(
                    f"{origin}: write the arguments of `register` as literals, the name first"
                ) from None
            description = _first_line(ast.get_docstring(node))
            yield variable, Entry(name, description, origin, module, metadata, plugin)


@contextmanager
def undone_on_failure() -> Iterator[None]:
    """Undo what was registered inside the block if the block fails."""
    before = {key: registry.snapshot() for key, registry in REGISTRIES.items()}
    try:
        yield
    except BaseException:
        for key, registry in REGISTRIES.items():
            registry.restore(before[key])
        raise


def _import(entry: Entry[Any]) -> None:
    if not entry.plugin:
        importlib.import_module(entry.module)
        return
    what = f"'{entry.name}' cannot be used, because its plugin '{entry.plugin}' is broken"
    home = Path(entry.origin.rpartition(":")[0]).parent
    with undone_on_failure(), blamed(what, home):
        importlib.import_module(entry.module)


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0].strip()


BACKBONES: "Registry[BackboneSource]" = Registry(
    "BACKBONES",
    "backbone",
    "backbone",
    "toolkit.backbones",
    "toolkit.backbones.base.BackboneSource",
)
PEFT: "Registry[PeftMethod]" = Registry(
    "PEFT", "peft", "PEFT method", "toolkit.peft", "toolkit.peft.base.PeftMethod"
)
PIPELINES: "Registry[Pipeline]" = Registry(
    "PIPELINES",
    "pipeline",
    "data pipeline",
    "toolkit.features",
    "toolkit.features.pipeline.Pipeline",
)
CORPORA: "Registry[Corpus]" = Registry(
    "CORPORA", "corpus", "corpus", "toolkit.data.corpora", "toolkit.data.manifest.Corpus"
)
TOOLS: "Registry[MixtureTool]" = Registry(
    "TOOLS", "tool", "tool on a trained mixture", "toolkit.mixtures"
)
SEARCHES: "Registry[Search]" = Registry(
    "SEARCHES", "search", "architecture search", "toolkit.training"
)

REGISTRIES: dict[str, Registry[Any]] = {
    registry.key: registry for registry in (PEFT, BACKBONES, CORPORA, PIPELINES, TOOLS, SEARCHES)
}
