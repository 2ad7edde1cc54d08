"""Registries: names, duplicates, laziness; settings: what is accepted and what a refusal says."""

import fnmatch
import importlib
import json
import math
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toolkit
from toolkit.errors import ConfigError, DuplicateName, UnknownName
from toolkit.registry import (
    BACKBONES,
    CORPORA,
    PEFT,
    PIPELINES,
    REGISTRIES,
    SEARCHES,
    TOOLS,
    Registry,
)
from toolkit.settings import Settings, setting, type_name

PARTS = '''"""Parts of a machine."""

from machine import PARTS


@PARTS.register("gear", paper="Archimedes", teeth=12)
class Gear:
    """Turns the other way.

    And more.
    """


@PARTS.register("axle")
class Axle:
    """Carries a gear."""
'''


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry whose own entries lie in a package `machine`, not yet imported."""
    package = tmp_path / "machine"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from toolkit.registry import Registry\n"
        'PARTS = Registry("PARTS", "part", "part", "machine")\n'
    )
    (package / "parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("machine").PARTS
    for name in ("machine", "machine.parts"):
        sys.modules.pop(name, None)


def line_of(text: str) -> int:
    """The line of this file that holds a text first."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


# ---------------------------------------------------------------- names


def test_register_keeps_what_is_known_about_a_thing(parts: Registry) -> None:
    @parts.register("cam", paper="al-Jazari", lobes=[1, 2])
    class Cam:
        """Lifts.

        Not shown.
        """

    entry = parts.entry("cam")
    assert (entry.name, entry.description, entry.target) == ("cam", "Lifts.", Cam)
    assert entry.metadata == {"paper": "al-Jazari", "lobes": [1, 2]}
    assert entry.origin == f"{__file__}:{line_of('al-Jazari')}"
    assert Cam.registered_name == "cam"
    assert parts.get("cam") is Cam


def test_duplicate_names_both_places(parts: Registry) -> None:
    @parts.register("spring", place="first")
    class First:
        """One."""

    with pytest.raises(DuplicateName, match="'spring' is registered twice") as caught:

        @parts.register("spring", place="second")
        class Second:
            """Two."""

    for place in ("first", "second"):
        assert f"{__file__}:{line_of(f'place={chr(34)}{place}')}" in str(caught.value)
    assert parts.get("spring") is First


def test_duplicate_of_a_thing_not_yet_imported(parts: Registry) -> None:
    with pytest.raises(DuplicateName) as caught:

        @parts.register("gear")
        class Mine:
            """Not the machine's."""

    assert f"parts.py:{PARTS.splitlines().index('class Gear:')}" in str(caught.value)
    assert f"{__file__}:" in str(caught.value)
    assert parts.get("gear").__name__ == "Gear"


def test_two_of_a_name_in_one_module(parts: Registry) -> None:
    folder = Path(importlib.import_module("machine").__file__).parent
    (folder / "twice.py").write_text(PARTS.replace("gear", "nut").replace("axle", "nut"))
    with pytest.raises(DuplicateName, match=r"twice\.py:6 and at .*twice\.py:14"):
        parts.names()


def test_a_module_run_again_is_no_duplicate(parts: Registry) -> None:
    gear = parts.get("gear")
    importlib.reload(sys.modules["machine.parts"])
    assert parts.get("gear") is not gear
    assert parts.names() == ["axle", "gear"]


@pytest.mark.parametrize(
    ("registry", "name", "near"),
    [
        (PEFT, "soft_mao", "soft_moa"),
        (PEFT, "adaptor", "adapter"),
        (BACKBONES, "ast-tiny", "ast_tiny"),
        (CORPORA, "esc-50", "esc50"),
        (PIPELINES, "fbanks", "fbank"),
    ],
)
def test_unknown_name_suggests_the_nearest(registry: Registry, name: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        registry.get(name)
    assert f"no {registry.kind} is called '{name}'; did you mean '{near}'" in str(caught.value)


@given(st.text())
def test_any_other_name_is_unknown(name: str) -> None:
    if name not in PEFT.names():
        with pytest.raises(UnknownName, match=re.escape(repr(name))):
            PEFT.get(name)


def test_nothing_near_nothing_suggested() -> None:
    with pytest.raises(UnknownName) as caught:
        PEFT.get("xyzzy")
    assert "did you mean" not in str(caught.value)


def test_glob(parts: Registry) -> None:
    assert parts.names() == ["axle", "gear"]
    assert parts.names("g*") == ["gear"]
    assert parts.names("?x*") == ["axle"]
    assert parts.names("[b-z]*") == ["gear"]
    assert parts.names("G*") == parts.names("x") == []


@given(st.text(alphabet="adeflmoprst_*?[]!"))
def test_glob_is_fnmatch(pattern: str) -> None:
    expected = sorted(n for n in PEFT.names() if fnmatch.fnmatchcase(n, pattern))
    assert PEFT.names(pattern) == expected


# ---------------------------------------------------------------- laziness


@pytest.fixture(scope="module")
def listing() -> dict[str, Any]:
    """What a fresh process lists before anything is imported, and the modules that this took."""
    script = """
import json, sys
from toolkit.registry import REGISTRIES
entries = {
    kind: {name: vars(registry.peek(name)) for name in registry.names()}
    for kind, registry in REGISTRIES.items()
}
print(json.dumps({"entries": entries, "modules": sorted(sys.modules)}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_listing_imports_nothing_heavy(listing: dict[str, Any]) -> None:
    loaded = {name.split(".")[0] for name in listing["modules"]}
    heavy = {"torch", "torchaudio", "transformers", "speechbrain", "numpy", "pandas", "hyperpyyaml"}
    assert not loaded & heavy
    packages = tuple(registry.package for registry in REGISTRIES.values())
    assert not {m for m in listing["modules"] if m.startswith(packages) and m not in packages}


def test_scan_agrees_with_importing_everything(listing: dict[str, Any]) -> None:
    for module in pkgutil.walk_packages(toolkit.__path__, "toolkit."):
        if module.name != "toolkit.__main__":
            importlib.import_module(module.name)
    for kind, registry in REGISTRIES.items():
        imported = {
            name: {k: v for k, v in vars(registry.peek(name)).items() if k != "target"}
            for name in registry.names()
            if registry.entry(name).module.startswith("toolkit.")
        }
        scanned = {
            name: {k: v for k, v in entry.items() if k != "target"}
            for name, entry in listing["entries"][kind].items()
        }
        assert imported == scanned
        # Tools and searches live in plugins.
        assert imported or registry in (TOOLS, SEARCHES), f"the library has no {registry.kind}"


def test_every_entry_is_described(listing: dict[str, Any]) -> None:
    for entries in listing["entries"].values():
        for name, entry in entries.items():
            assert entry["description"], f"{name} has no docstring"
            assert entry["metadata"].get("paper"), f"{name} names no source"
            file, line = entry["origin"].rsplit(":", 1)
            assert ".register(" in Path(file).read_text().splitlines()[int(line) - 1]


def test_a_module_is_imported_when_its_entry_is_asked_for(parts: Registry) -> None:
    assert parts.peek("gear").target is None
    assert parts.peek("gear").metadata == {"paper": "Archimedes", "teeth": 12}
    assert parts.peek("gear").description == "Turns the other way."
    assert "machine.parts" not in sys.modules
    scanned = dict(vars(parts.peek("gear")))
    assert parts.get("gear").__name__ == "Gear"
    assert "machine.parts" in sys.modules
    assert vars(parts.peek("gear")) == {**scanned, "target": parts.get("gear")}


def test_restoring_keeps_what_was_imported_since(parts: Registry) -> None:
    before = parts.snapshot()

    @parts.register("cam")
    class Cam:
        """Not for long."""

    assert parts.get("axle").__name__ == "Axle"  # imports a module, which happens but once
    parts.restore(before)
    assert parts.names() == ["axle", "gear"]
    assert parts.get("axle").__name__ == "Axle"
    assert parts.get("gear").__name__ == "Gear"


def test_register_where_there_is_no_source_file() -> None:
    script = (
        "from toolkit.registry import PEFT\n"
        "@PEFT.register('mine')\n"
        "class Mine:\n"
        "    'Typed at a prompt.'\n"
        "print(PEFT.entry('mine').description)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "Typed at a prompt.\n", done.stderr


# ---------------------------------------------------------------- creating


def test_create_from_a_name_and_from_a_mapping() -> None:
    assert PEFT.create("lora").rank == 6
    config = {"name": "lora", "rank": 3, "targets": ["k"]}
    method = PEFT.create(config)
    assert (method.rank, method.targets, method.alpha) == (3, ["k"], 16.0)
    assert config == {"name": "lora", "rank": 3, "targets": ["k"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 3}, r"'peft' needs a 'name': one of .*lora.* \(a PEFT method\)"),
        ({"name": None}, r"'peft' needs a 'name'"),
        ({"name": ["lora"]}, r"'peft' needs a 'name'"),
        ({}, r"'peft' needs a 'name'"),
        ({"name": "lora", "rnak": 3}, r"unknown setting 'peft\.rnak'; did you mean 'rank'\?"),
        ({"name": "lora", "zzz": 3}, r"unknown setting 'peft\.zzz' \(known: .*rank.*\)"),
        ({"name": "lora", 3: 3}, r"unknown setting 'peft\.3'"),
        ({"name": "lora", "rank": "6"}, r"peft: 'rank' must be int, not '6'"),
        ({"name": "lora", "rank": 6.0}, r"peft: 'rank' must be int, not 6\.0"),
        ({"name": "lora", "rank": True}, r"peft: 'rank' must be int, not True"),
        ({"name": "lora", "rank": None}, r"peft: 'rank' must be int, not None"),
        ({"name": "lora", "rank": 0}, r"peft: 'rank' must be at least 1, not 0"),
        ({"name": "lora", "dropout": 1.5}, r"peft: 'dropout' must be below 1, not 1\.5"),
        ({"name": "lora", "alpha": math.nan}, r"peft: 'alpha' must be above 0, not nan"),
        ({"name": "lora", "alpha": 0}, r"peft: 'alpha' must be above 0, not 0"),
        ({"name": "lora", "alpha": math.inf}, r"peft: 'alpha' must be a finite number, not inf"),
        ({"name": "lora", "dropout": 1.0}, r"peft: 'dropout' must be below 1, not 1\.0"),
        ({"name": "adapter", "scale": 0.0}, r"peft: 'scale' must not be 0: nothing would be"),
        ({"name": "fact", "scale": math.nan}, r"peft: 'scale' must be a finite number, not nan"),
        ({"name": "lora", "alpha": "high"}, r"peft: 'alpha' must be float, not 'high'"),
        ({"name": "lora", "targets": "q"}, r"peft: 'targets' must be list of 'q' \| 'k'"),
        ({"name": "lora", "targets": ["q", "z"]}, r"peft: 'targets' must be list of"),
        ({"name": "lora", "targets": ["q", "q"]}, r"peft: 'targets' must name projections"),
        ({"name": "lora", "targets": []}, r"peft: 'targets' must name projections"),
        (
            {"name": "soft_moa", "placement": "mhsaa"},
            r"'placement' must be 'mhsa' \| 'ffn' \| 'both', not 'mhsaa'; did you mean 'mhsa'\?",
        ),
        ({"name": "adapter", "mode": "paralell"}, r"did you mean 'parallel'\?"),
        ({"name": "adapter", "mode": 1}, r"'mode' must be 'parallel' \| 'sequential'.*, not 1$"),
        ({"name": "soft_moa", "slots": 0}, r"peft: 'slots' must be at least 1, not 0"),
        ({"name": "soft_moa", "noise": -0.1}, r"peft: 'noise' must be at least 0, not -0\.1"),
    ],
)
def test_create_refuses(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PEFT.create(config)


# ---------------------------------------------------------------- settings


class Example(Settings):
    """One setting of each type."""

    count: int = setting(3, "how many", minimum=1, maximum=10)
    share: float = setting(0.5, "how much of it", minimum=0, maximum=1)
    kind: Literal["a", "b", 1] = setting("a", "which")
    label: str | None = setting(None, "its name")
    sizes: list[int] = setting([1, 2], "how large")
    table: dict = setting({"x": 1}, "whatever")
    on: bool = setting(False, "whether")


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | st.floats(-0.5, 1.5)
    | st.sampled_from([1.0, math.nan, math.inf])
    | st.sampled_from(["a", "b", "c", ""])
    | st.lists(st.integers() | st.booleans() | st.text(max_size=2), max_size=3)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
)


def allowed(name: str, value: Any) -> bool:
    """The annotations and ranges of `Example`, written out a second time."""
    number = type(value) in (int, float)
    return {
        "count": type(value) is int and 1 <= value <= 10,
        "share": number and 0 <= value <= 1,
        "kind": value in ("a", "b") or (type(value) is int and value == 1),
        "label": value is None or isinstance(value, str),
        "sizes": isinstance(value, list) and all(type(v) is int for v in value),
        "table": isinstance(value, dict),
        "on": type(value) is bool,
    }[name]


@given(st.sampled_from(sorted(Example().as_dict())), VALUES)
def test_accepted_if_and_only_if_of_the_type_and_in_range(name: str, value: Any) -> None:
    if allowed(name, value):
        assert getattr(Example.from_mapping({name: value}, "it"), name) == value
    else:
        with pytest.raises(ConfigError, match=f"^it: '{name}' must be "):
            Example.from_mapping({name: value}, "it")


@given(st.integers(1, 10), st.floats(0, 1), st.lists(st.integers()), st.none() | st.text())
def test_settings_are_plain_values_and_make_the_same_again(
    count: int, share: float, sizes: list[int], label: str | None
) -> None:
    example = Example(count=count, share=share, sizes=sizes, label=label)
    plain = json.loads(json.dumps(example.as_dict()))
    assert Example.from_mapping(plain, "it").as_dict() == example.as_dict()


@given(st.text().filter(lambda key: key not in Example().as_dict()))
def test_any_other_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Example.from_mapping({key: 1}, "part.of.it")
    assert str(caught.value).startswith(f"unknown setting 'part.of.it.{key}'")
    assert "known: count, share, kind" in str(caught.value)


@pytest.mark.parametrize("name", PEFT.names())
def test_misspelling_any_setting_suggests_it(name: str) -> None:
    for key in PEFT.create(name).as_dict():
        with pytest.raises(ConfigError, match=f"did you mean '{key}'"):
            PEFT.create({"name": name, f"{key}_": 1})


def test_mutable_defaults_are_not_shared() -> None:
    first = Example()
    first.sizes.append(3)
    first.table["y"] = 2
    assert (Example().sizes, Example().table) == ([1, 2], {"x": 1})


def test_subclasses_inherit_settings_and_checks() -> None:
    class Narrow(Example):
        """With a rule of its own."""

        extra: int = setting(1, "more")

        def check(self) -> None:
            if self.extra > self.count:
                raise ConfigError("'extra' must not exceed 'count'")

    assert Narrow(count=4, extra=4).as_dict()["extra"] == 4
    with pytest.raises(ConfigError, match=r"^it: 'extra' must not exceed 'count'$"):
        Narrow.from_mapping({"extra": 4}, "it")
    with pytest.raises(ConfigError, match="'count' must be at least 1"):
        Narrow(count=0)


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (str | None, "str or none"),
        (list[int], "list of int"),
        (Literal["a", "b"], "'a' | 'b'"),
        (list[Literal["q", "k"]], "list of 'q' | 'k'"),
        (int | list[str], "int or list of str"),
        (dict, "dict"),
    ],
)
def test_types_as_a_user_reads_them(hint: Any, text: str) -> None:
    assert type_name(hint) == text


def test_representation_shows_the_settings() -> None:
    shown = (
        "Example(count=4, share=0.5, kind='a', label=None, sizes=[1, 2], table={'x': 1}, on=False)"
    )
    assert repr(Example(count=4)) == shown
