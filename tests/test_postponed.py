"""Imports that wait until what they bring is used."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit.postponed import postponed

HEAVY = """
count = 0
class Kind:
    pass
class Child(Kind):
    pass
def function(number):
    return number + 1
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The packages `heavy`, with a module `heavy.part`, and `user`, which imports from both."""
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "__init__.py").write_text(HEAVY)
    (tmp_path / "heavy" / "part.py").write_text("def other():\n    return 'part'\n")
    (tmp_path / "user.py").write_text(
        "from heavy import Kind, function\nfrom heavy.part import other\nimport heavy.part\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("heavy", "heavy.part", "user"):
        sys.modules.pop(name, None)


def imported_late() -> Any:
    """The module `user`, imported while `heavy` is postponed."""
    with postponed("heavy"):
        user = importlib.import_module("user")
    assert "heavy" not in sys.modules and "heavy.part" not in sys.modules
    return user


def test_a_use_imports(package: Path) -> None:
    user = imported_late()
    assert user.other() == "part" and "heavy" in sys.modules
    assert user.function(1) == 2


def test_nothing_is_of_a_class_that_has_not_been_imported(package: Path) -> None:
    user = imported_late()
    assert not isinstance(3, user.Kind) and not issubclass(int, user.Kind)
    assert "heavy" not in sys.modules
    heavy = importlib.import_module("heavy")
    assert isinstance(heavy.Child(), user.Kind) and issubclass(heavy.Child, user.Kind)
    assert not isinstance(3, user.Kind)


def test_a_class_that_is_postponed_can_be_extended_and_annotate(package: Path) -> None:
    user = imported_late()
    assert isinstance(3, user.Kind | int) and not isinstance("", int | user.Kind)
    assert "heavy" not in sys.modules

    class Own(user.Kind):  # type: ignore[name-defined, misc]
        pass

    assert issubclass(Own, importlib.import_module("heavy").Kind)


def test_a_use_inside_the_block_imports(package: Path) -> None:
    with postponed("heavy"):
        user = importlib.import_module("user")
        assert user.function(2) == 3
        assert importlib.import_module("heavy").count == 0
    assert importlib.import_module("heavy").count == 0


def test_a_module_that_is_imported_stays(package: Path) -> None:
    heavy = importlib.import_module("heavy")
    with postponed("heavy"):
        user = importlib.import_module("user")
    assert user.Kind is heavy.Kind and sys.modules["heavy"] is heavy


def test_what_is_not_installed_is_not_stood_in_for() -> None:
    with postponed("not_installed"), pytest.raises(ModuleNotFoundError):
        importlib.import_module("not_installed")


def test_what_was_marked_for_the_compiler_is_marked_when_it_is_imported() -> None:
    script = """
import sys, torch
from toolkit.postponed import postponed
with postponed("torch._dynamo"):
    @torch.compiler.allow_in_graph
    def function():
        pass
assert "torch._dynamo" not in sys.modules
import torch._dynamo
assert id(function) in torch._dynamo.trace_rules._allowed_callable_ids
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
