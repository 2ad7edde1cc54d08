"""Plugins: registered things that live outside the library.

A plugin is a folder of Python files. They are looked for, the nearest first, in the folders named
by `--plugins` or in `TOOLKIT_PLUGINS` (each a plugin, or a directory of plugins), in `plugins/` of
the working directory, and in the `plugins/` that comes with the toolkit. Of several with one name
the nearest is imported. Python entry points of the group `toolkit.plugins` are imported too.
Whatever they register is there; one that cannot be imported is reported and leaves no trace in the
registries.
"""

import dataclasses
import functools
import importlib
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path

from toolkit import places
from toolkit.errors import PluginError
from toolkit.registry import REGISTRIES

PACKAGE = "toolkit_plugins"
ENTRY_POINT_GROUP = "toolkit.plugins"


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plugin that was found.

    Attributes:
        name: the folder's or the entry point's name.
        origin: where it was found.
        error: the traceback if importing it failed, else None.
    """

    name: str
    origin: str
    error: str | None = None


_loaded: dict[str, Plugin] = {}
_said: set[str] = set()


def candidates(folders: Iterable[str | Path] = ()) -> list[Path]:
    """The folders of all plugins that can be found, each once, the nearest first; see `load`."""
    named = [*folders, *filter(None, os.environ.get("TOOLKIT_PLUGINS", "").split(os.pathsep))]
    for place in named:
        if not Path(place).is_dir():
            raise PluginError(f"the plugin folder {place} does not exist")
    where = [*map(Path, named), *_folders(Path("plugins")), *_folders(places.plugins())]
    found = [folder.resolve() for place in where for folder in _plugin_folders(place)]
    return list(dict.fromkeys(found))


def nearest(folders: Iterable[str | Path] = ()) -> list[Path]:
    """The nearest folder of every plugin's name; see `load`."""
    found: dict[str, Path] = {}
    for folder in candidates(folders):
        found.setdefault(folder.name, folder)
    return list(found.values())


def load(folders: Iterable[str | Path] = ()) -> list[Plugin]:
    """Import the nearest of every plugin that can be found, each once in a process.

    Args:
        folders: further places, from `--plugins`; these must exist.

    Returns:
        all plugins loaded so far, broken ones with their traceback in `error`.

    Raises:
        PluginError: a place that was named does not exist.
    """
    for folder in candidates(folders):
        if _imported_from(folder.name) is None:
            key = str(folder)
            _loaded[key] = _attempt(folder.name, key, functools.partial(_import_folder, folder))
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.value not in _loaded:
            _loaded[point.value] = _attempt(point.name, point.value, point.load)
    return list(_loaded.values())


def load_and_report(folders: Iterable[str | Path] = ()) -> None:
    """`load`, and say on the error stream what was left out, once in a process."""
    folders = list(folders)
    for text in (report(load(folders)), shadowed(folders)):
        if text and text not in _said:
            _said.add(text)
            print(text, file=sys.stderr)


def report(plugins: Iterable[Plugin]) -> str:
    """What is wrong with the broken ones, by name and with tracebacks; `""` if none is broken."""
    return "\n".join(
        f"plugin '{p.name}' ({p.origin}) is broken and was left out:\n{p.error}"
        for p in plugins
        if p.error
    )


def shadowed(folders: Iterable[str | Path] = ()) -> str:
    """Which loaded plugins have namesakes that were left out, in one line; `""` if none has."""
    names: dict[tuple[Path, Path], list[str]] = {}
    for folder in candidates(folders):
        used = _imported_from(folder.name)
        if used is not None and used != folder:
            names.setdefault((used.parent, folder.parent), []).append(folder.name)
    return "; ".join(
        f"plugins of {used} are used instead of those in {left_out}: {', '.join(sorted(found))}"
        for (used, left_out), found in names.items()
    )


def _imported_from(name: str) -> Path | None:
    """The folder from which the plugin of that name was imported, if it was."""
    module = sys.modules.get(f"{PACKAGE}.{name}")
    return None if module is None else Path(module.__path__[0])


def _python_files(folder: Path) -> list[Path]:
    return [
        f for f in sorted(folder.glob("*.py")) if not f.name.startswith(("test_", "conftest", "__"))
    ]


def _folders(place: Path) -> list[Path]:
    """The folders in `place` that are neither hidden nor private."""
    return sorted(place.glob("[!._]*/"))


def _plugin_folders(place: Path) -> list[Path]:
    """`place` itself if it holds Python files, else its sub-folders that do."""
    if _python_files(place):
        return [place]
    return [folder for folder in _folders(place) if _python_files(folder)]


def _attempt(name: str, origin: str, run: Callable[[], object]) -> Plugin:
    before = {kind: registry.snapshot() for kind, registry in REGISTRIES.items()}
    try:
        run()
    except (Exception, SystemExit):
        for kind, registry in REGISTRIES.items():
            registry.restore(before[kind])
        return Plugin(name, origin, traceback.format_exc())
    return Plugin(name, origin)


def _import_folder(folder: Path) -> None:
    """Import a folder's files as submodules of `toolkit_plugins.<folder name>`."""
    if PACKAGE not in sys.modules:
        sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
        sys.modules[PACKAGE].__path__ = []
    package = f"{PACKAGE}.{folder.name}"
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(folder)]
    setattr(sys.modules[PACKAGE], folder.name, sys.modules[package])
    for file in _python_files(folder):
        importlib.import_module(f"{package}.{file.stem}")
