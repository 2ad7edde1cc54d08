"""Plugins: registered things that live outside the library.

A plugin is a folder of Python files. The folders of a `plugins/` directory beside the recipes,
the folders named in `TOOLKIT_PLUGINS` or by `--plugins` (each a plugin, or a directory of
plugins), and the Python entry points of the group `toolkit.plugins` are imported; whatever they
register is there. One that cannot be imported is reported and leaves no trace in the registries.
"""

import dataclasses
import importlib
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path

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


def default_folders() -> list[Path]:
    """The folders in `plugins/` beside this checkout's recipes and in the working directory."""
    checkout = Path(__file__).resolve().parent.parent
    places = [checkout / "plugins"] if (checkout / "recipes").is_dir() else []
    return [folder for place in [*places, Path.cwd() / "plugins"] for folder in _folders(place)]


def places(folders: Iterable[str | Path] = ()) -> list[Path]:
    """The folders of all plugins that can be found; see `load`."""
    named = [*folders, *filter(None, os.environ.get("TOOLKIT_PLUGINS", "").split(os.pathsep))]
    for place in named:
        if not Path(place).is_dir():
            raise PluginError(f"the plugin folder {place} does not exist")
    found = [*default_folders(), *map(Path, named)]
    return [folder for place in found for folder in _plugin_folders(place)]


def load(folders: Iterable[str | Path] = ()) -> list[Plugin]:
    """Import every plugin that can be found, each once in a process.

    Args:
        folders: further places, from `--plugins`; these must exist.

    Returns:
        all plugins loaded so far, broken ones with their traceback in `error`.

    Raises:
        PluginError: a place that was named does not exist.
    """
    for folder in places(folders):
        key = str(folder.resolve())
        if key not in _loaded:
            _loaded[key] = _attempt(folder.name, key, lambda f=folder: _import_folder(f))
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.value not in _loaded:
            _loaded[point.value] = _attempt(point.name, point.value, point.load)
    return list(_loaded.values())


def report(plugins: Iterable[Plugin]) -> str:
    """What is wrong with the broken ones, by name and with tracebacks; `""` if none is broken."""
    return "\n".join(
        f"plugin '{p.name}' ({p.origin}) is broken and was left out:\n{p.error}"
        for p in plugins
        if p.error
    )


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
    if package in sys.modules:
        raise PluginError(f"another plugin folder is also called '{folder.name}'; rename one")
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(folder)]
    setattr(sys.modules[PACKAGE], folder.name, sys.modules[package])
    for file in _python_files(folder):
        importlib.import_module(f"{package}.{file.stem}")
