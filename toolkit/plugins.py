"""Plugins: registered things that live outside the library.

A plugin is a folder of Python files. Plugins are looked for, the nearest first, in the folders
named by `--plugins` or in `TOOLKIT_PLUGINS` (each a plugin, a directory of plugins, or a project
with a `plugins/`), in `plugins/` of the project that a recipe lies in, and in the `plugins/` that
comes with the toolkit. Of several plugins with one name the nearest is used. Modules named by
Python entry points of the group `toolkit.plugins` are plugins too. The working directory as such is
not searched: it may have been downloaded.

To discover plugins is to read what they register: their modules are imported when one of their
entries is asked for. A plugin that cannot be read or imported is reported, and leaves no trace in
the registries.
"""

import dataclasses
import importlib
import os
import sys
import types
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from toolkit import places
from toolkit.errors import DuplicateName, PluginError, ToolkitError
from toolkit.foreign import blamed
from toolkit.registry import REGISTRIES, read_entries, undone_on_failure

PACKAGE = "toolkit_plugins"
ENTRY_POINT_GROUP = "toolkit.plugins"
FOLDER = "plugins"
"""The folder of a project that holds its plugins."""


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plugin that was found.

    Attributes:
        name: the name of its folder or of its entry point.
        origin: the folder, or the module that the entry point names.
        modules: module name -> source file, in the order in which they are imported.
        error: why it was left out, else None.
    """

    name: str
    origin: str
    modules: dict[str, Path] = dataclasses.field(default_factory=dict)
    error: str | None = None


_found: dict[str, Plugin] = {}
_said: set[str] = set()


def candidates(folders: Iterable[str | Path] = ()) -> list[Path]:
    """The folders of all plugins that can be found, each once, the nearest first.

    Args:
        folders: further places, from `--plugins`; these must exist.

    Raises:
        PluginError: a place that was named does not exist.
    """
    named = [*folders, *filter(None, os.environ.get("TOOLKIT_PLUGINS", "").split(os.pathsep))]
    for place in named:
        if not Path(place).is_dir():
            raise PluginError(f"the plugin folder {place} does not exist")
    where = [*map(Path, named), *_folders(places.plugins())]
    found = [folder.resolve() for place in where for folder in _plugin_folders(place)]
    return list(dict.fromkeys(found))


def of_project(recipe: Path, hparams: Path | None = None) -> list[Path]:
    """The `plugins/` of the project that is trained with.

    Args:
        recipe: the folder of train.py: `PROJECT/NAME` or `PROJECT/recipes/NAME`.
        hparams: the configuration, which may lie in a plugin itself: `PROJECT/plugins/NAME`.
    """
    above = recipe.resolve().parent
    found = [(above.parent if above.name == "recipes" else above) / FOLDER]
    if hparams is not None and hparams.absolute().parent.parent.name == FOLDER:
        found.insert(0, hparams.absolute().parent.parent)
    return [folder for folder in found if folder.is_dir()]


def nearest(folders: Iterable[str | Path] = ()) -> list[Path]:
    """The nearest folder for every name of a plugin; see `candidates`."""
    found: dict[str, Path] = {}
    for folder in candidates(folders):
        found.setdefault(folder.name, folder)
    return list(found.values())


def discover(folders: Iterable[str | Path] = ()) -> list[Plugin]:
    """Read what every plugin registers, each once per process; none is imported.

    Args:
        folders: see `candidates`.

    Returns:
        all plugins found so far, those that were left out with the reason in `error`.

    Raises:
        PluginError: a place that was named does not exist.
    """
    for folder in candidates(folders):
        if _folder_of(folder.name) is None:
            package = _make_package(folder)
            modules = {f"{package}.{file.stem}": file for file in _python_files(folder)}
            _found[str(folder)] = _read(Plugin(folder.name, str(folder), modules))
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.value not in _found:
            plugin = Plugin(point.name, point.value, _modules_of(point))
            _found[point.value] = _read(plugin)
    return list(_found.values())


def modules() -> dict[str, Path]:
    """The modules of all plugins found so far: name -> source file."""
    return {
        name: file
        for plugin in _found.values()
        if plugin.error is None
        for name, file in plugin.modules.items()
    }


def load(folders: Iterable[str | Path] = ()) -> list[Plugin]:
    """Discover all plugins and import all of their modules.

    Args:
        folders: see `candidates`.

    Returns:
        all plugins found so far, those that were left out with the reason in `error`.

    Raises:
        PluginError: a place that was named does not exist.
    """
    for plugin in discover(folders):
        if plugin.error is None:
            _found[plugin.origin] = _import(plugin)
    return list(_found.values())


def discover_and_report(folders: Iterable[str | Path] = ()) -> None:
    """`discover`, and print to the error stream what was left out, once per process."""
    folders = list(folders)
    for text in (report(discover(folders)), shadowed(folders), unused(folders)):
        if text and text not in _said:
            _said.add(text)
            print(text, file=sys.stderr)


def report(plugins: Iterable[Plugin]) -> str:
    """What is wrong with the plugins that were left out; `""` if there are none."""
    return "\n".join(
        f"plugin '{p.name}' ({p.origin}) is broken and was left out: {p.error}"
        for p in plugins
        if p.error
    )


def shadowed(folders: Iterable[str | Path] = ()) -> str:
    """Which plugins are not used because a nearer one has their name, in one line; else `""`."""
    names: dict[tuple[Path, Path], list[str]] = {}
    for folder in candidates(folders):
        used = _folder_of(folder.name)
        if used is not None and used != folder:
            names.setdefault((used.parent, folder.parent), []).append(folder.name)
    return "; ".join(
        f"plugins of {used} are used instead of those in {left_out}: {', '.join(sorted(found))}"
        for (used, left_out), found in names.items()
    )


def unused(folders: Iterable[str | Path] = ()) -> str:
    """Which plugins of the working directory are not used, and how to use them; else `""`."""
    used = set(candidates(folders))
    names = [
        folder.name for folder in _plugin_folders(Path(FOLDER)) if folder.resolve() not in used
    ]
    if not names:
        return ""
    return (
        f"the plugins in {FOLDER}/ of this folder are not used ({', '.join(names)}): if you trust "
        f"them, add `--{FOLDER} {FOLDER}`"
    )


def _read(plugin: Plugin) -> Plugin:
    """Add what a plugin's source files register to the registries."""
    by_variable = {registry.variable: registry for registry in REGISTRIES.values()}
    try:
        if not plugin.modules:
            raise PluginError(f"there is no source file of {plugin.origin}")
        with undone_on_failure():
            for module, file in plugin.modules.items():
                for variable, entry in read_entries(file, module, plugin.name):
                    if variable in by_variable:
                        by_variable[variable].add(entry)
    except SyntaxError as error:
        reason = f"{error.filename}, line {error.lineno}: {error.msg}"
    except (DuplicateName, PluginError, OSError, ValueError) as error:  # ValueError: a binary file
        reason = str(error)
    else:
        return plugin
    return dataclasses.replace(plugin, error=reason)


def _import(plugin: Plugin) -> Plugin:
    """Import all modules of a plugin."""
    try:
        with undone_on_failure():
            for module, file in plugin.modules.items():
                with blamed(module, file.parent):
                    importlib.import_module(module)
    except ToolkitError as error:
        _withdraw(plugin)
        return dataclasses.replace(plugin, error=str(error))
    return plugin


def _withdraw(plugin: Plugin) -> None:
    """Remove a plugin's entries from the registries."""
    for registry in REGISTRIES.values():
        names = registry.names()
        others = (name for name in names if registry.peek(name).module not in plugin.modules)
        registry.restore(frozenset(others))


def _make_package(folder: Path) -> str:
    """Make a folder the package `toolkit_plugins.<folder name>`, whose `__init__` is empty."""
    for name, path in ((PACKAGE, []), (f"{PACKAGE}.{folder.name}", [str(folder)])):
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = path
    package = sys.modules[f"{PACKAGE}.{folder.name}"]
    setattr(sys.modules[PACKAGE], folder.name, package)
    return package.__name__


def _folder_of(name: str) -> Path | None:
    """The folder of the plugin of that name, if one was found."""
    module = sys.modules.get(f"{PACKAGE}.{name}")
    return None if module is None else Path(module.__path__[0])


def _modules_of(point: EntryPoint) -> dict[str, Path]:
    """The module that an entry point names, and those beside it if it is a package."""
    name, *inner = point.module.split(".")
    spec = find_spec(name)
    for part in inner:  # `find_spec` would import the packages above
        name = f"{name}.{part}"
        spec = spec and PathFinder.find_spec(name, spec.submodule_search_locations or [])
    if spec is None:
        return {}
    modules = {name: Path(spec.origin)} if spec.origin else {}
    folders = map(Path, spec.submodule_search_locations or ())
    return modules | {f"{name}.{f.stem}": f for folder in folders for f in _python_files(folder)}


def _python_files(folder: Path) -> list[Path]:
    return [
        f for f in sorted(folder.glob("*.py")) if not f.name.startswith(("test_", "conftest", "__"))
    ]


def _folders(place: Path) -> list[Path]:
    """The folders in `place` that are neither hidden nor private."""
    return sorted(place.glob("[!._]*/"))


def _plugin_folders(place: Path) -> list[Path]:
    """`place` itself if it holds Python files, else its sub-folders that do.

    A project stands for its `plugins/`, which is never a plugin itself.
    """
    if (place / FOLDER).is_dir():
        place = place / FOLDER
    if place.name != FOLDER and _python_files(place):
        return [place]
    return [folder for folder in _folders(place) if _python_files(folder)]
