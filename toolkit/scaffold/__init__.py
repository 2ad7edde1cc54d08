"""`toolkit new-plugin`: the files of a new plugin of any kind, which work as they stand."""

import keyword
import re
from importlib.util import find_spec
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.files import handed_over
from toolkit.registry import REGISTRIES
from toolkit.scaffold import augmentation, backbone, corpus, peft, pipeline

KINDS: dict[str, dict[str, str]] = {
    "peft": peft.FILES,
    "backbone": backbone.FILES,
    "corpus": corpus.FILES,
    "pipeline": pipeline.FILES,
    "augmentation": augmentation.FILES,
}
"""Kind of plugin -> its files: a template of the name, and of the text."""


def new_plugin(name: str, place: Path, kind: str = "peft") -> list[Path]:
    """Write a plugin's module, its configuration where it has one, and its test.

    Args:
        name: what is registered, a Python identifier in lower case.
        place: the directory of plugins; a folder `name` is made in it.
        kind: one of `KINDS`.

    Returns:
        the files written, the module first and the test last.

    Raises:
        ConfigError: no such kind, not a name, or one that is taken.
        PlaceError: the folder is already there.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind of plugin {kind!r}; write one of {', '.join(KINDS)}")
    taken = keyword.iskeyword(name) or name in ("true", "false", "null")  # in Python and in YAML
    if taken or not re.fullmatch("(?!test_|conftest)[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{name!r} cannot name a plugin; use lower-case letters, digits and _")
    if find_spec(name) is not None:
        raise ConfigError(f"there is already a Python package '{name}'; choose another name")
    registry = REGISTRIES.get(kind)
    if registry is not None and name in registry.names():
        origin = registry.peek(name).origin
        raise ConfigError(f"there is already a {registry.kind} '{name}' at {origin}")
    folder = place / name
    title = "".join(part.capitalize() for part in name.split("_"))
    values = {"name": name, "title": title, "folder": folder}
    files = {file.format(**values): text.format(**values) for file, text in KINDS[kind].items()}
    with handed_over(folder) as made:
        for file, text in files.items():
            (made / file).write_text(text, encoding="utf-8")
    return [folder / file for file in files]
