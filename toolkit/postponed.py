"""Imports that wait until what they bring is used.

    with postponed("scipy"):
        import transformers.modeling_utils  # which imports scipy.optimize

Inside the block, such a module and those below it are only stood in for; the first use of a name
that was imported from one of them imports it. What never uses them never waits for them, and
everything else works as it did. A module that is imported already is used as it is.

Decorators that only mark a function for their module (`MARKS`) are applied when it is imported.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any, Union

MARKS = {"torch._dynamo": ("allow_in_graph", "assume_constant_result")}
"""Module -> its decorators that return the function itself, marked."""


class StandIn(ModuleType):
    """Stands in for a module that has not been imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Postponed(self.__name__, name)


class Postponed:
    """A name of a module, which is imported when the name is used."""

    def __init__(self, module: str, name: str) -> None:
        self.__dict__.update(module=module, name=name)

    def _found(self) -> Any:
        """What the name stands for."""
        if isinstance(sys.modules.get(self.module), StandIn):
            _remove_stand_ins(self.module.partition(".")[0])
        with _nothing_postponed():
            return getattr(importlib.import_module(self.module), self.name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not self._is_imported():  # `typing` only looks
            raise AttributeError(name)
        return getattr(self._found(), name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self._marks(arguments) and not self._is_imported():
            _MARKED.functions.append((self, arguments[0]))
            return arguments[0]
        return self._found()(*arguments, **options)

    def __instancecheck__(self, instance: object) -> bool:
        return self._is_imported() and isinstance(instance, self._found())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._is_imported() and issubclass(subclass, self._found())

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self._found(),)

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007

    def _marks(self, arguments: tuple[Any, ...]) -> bool:
        """Whether a call with these arguments marks a function."""
        known = self.name in MARKS.get(self.module, ())
        return known and len(arguments) == 1 and isinstance(arguments[0], FunctionType)

    def _is_imported(self) -> bool:
        """Whether anything can be of a class of this name: its module has been imported."""
        return not isinstance(sys.modules.get(self.module), StandIn | None)


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for some modules and those below them.

    Args:
        names: the modules.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """A stand-in, unless the module has been imported or is not installed."""
        above = [n for n in self._names if name == n or name.startswith(f"{n}.")]
        if not above or not isinstance(sys.modules.get(above[0]), StandIn | None):
            return None
        with _nothing_postponed():
            if "." not in name and importlib.util.find_spec(name) is None:
                return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The stand-in."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in has no code."""


class _Marked(MetaPathFinder):
    """Marks functions as soon as the module is imported that they are marked for."""

    def __init__(self) -> None:
        self.functions: list[tuple[Postponed, FunctionType]] = []

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """The module, which marks the functions when it has been executed."""
        if not any(mark.module == name for mark, _ in self.functions):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_mark(module: ModuleType) -> None:
            execute(module)
            own = [(mark, function) for mark, function in self.functions if mark.module == name]
            self.functions = [pair for pair in self.functions if pair not in own]
            for mark, function in own:
                getattr(module, mark.name)(function)

        spec.loader.exec_module = execute_and_mark  # type: ignore[method-assign]
        return spec


_MARKED = _Marked()


@contextmanager
def postponed(*names: str) -> Iterator[None]:
    """Import these modules, and those below them, only when what they bring is used.

    Args:
        names: dotted names of modules. Their names should be used by code that runs later: as
            functions, base classes, or in `isinstance`; not as numbers or texts.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _remove_stand_ins()
        if _MARKED.functions and _MARKED not in sys.meta_path:
            sys.meta_path.insert(0, _MARKED)


@contextmanager
def _nothing_postponed() -> Iterator[None]:
    """Import modules as they are, also inside a block of `postponed`."""
    before = sys.meta_path[:]
    sys.meta_path[:] = [finder for finder in before if not isinstance(finder, _Finder)]
    try:
        yield
    finally:
        sys.meta_path[:] = before


def _remove_stand_ins(package: str = "") -> None:
    """Let the next import of what is stood in for find the module; of one package, or all."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, StandIn) and package in ("", name.partition(".")[0]):
            del sys.modules[name]
            above, _, attribute = name.rpartition(".")
            if vars(sys.modules.get(above, module)).get(attribute) is module:
                delattr(sys.modules[above], attribute)
