"""Digests of source code: what changes them, and what does not."""

import sys
from pathlib import Path

import pytest

from toolkit import plugins
from toolkit.registry import PEFT
from toolkit.source_code import code_of, source_digest

METHOD = '''
"""A method of a test."""

from {imported} import scale
from toolkit.peft.base import PeftMethod


class Method(PeftMethod):
    """Does nothing."""

    def insert(self, backbone):
        """Not needed."""
        # nothing to do
        return scale(2)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a method, and a module that this imports."""
    folder = tmp_path / "method_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "method.py").write_text(METHOD.format(imported="method_of_a_test.scaling"))
    (folder / "scaling.py").write_text("def scale(x):\n    return 3 * x\n")
    (folder / "unrelated.py").write_text("number = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("method_of_a_test")]:
        del sys.modules[name]


def digest() -> str | None:
    from method_of_a_test.method import Method

    return source_digest(Method)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# nothing to do", "# nothing at all to do", True),
        ('"""Does nothing."""', '"""Does\n\n    nothing at all."""', True),
        ('"""A method of a test."""\n', "", True),
        ("class Method", "\n\n\nclass Method", True),
        ("scale(2)", "scale(3)", False),
        ("import scale", "import scale as scale", False),
    ],
)
def test_only_code_counts(package: Path, old: str, new: str, same: bool) -> None:
    before, file = digest(), package / "method.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert (digest() == before) is same


def test_what_a_method_imports_counts_too(package: Path) -> None:
    before = digest()
    (package / "unrelated.py").write_text("number = 2\n")
    assert digest() == before
    (package / "scaling.py").write_text("def scale(x):\n    return 4 * x\n")
    assert digest() != before


def test_a_module_may_name_its_encoding(package: Path) -> None:
    before = digest()
    text = "# coding: latin-1\n# \u00e9\ndef scale(x):\n    return 3 * x\n"
    (package / "scaling.py").write_text(text, encoding="latin-1")
    assert digest() == before


def test_relative_imports_are_followed(package: Path) -> None:
    (package / "method.py").write_text(METHOD.format(imported=".scaling"))
    before = digest()
    (package / "scaling.py").write_text("def scale(x):\n    return 4 * x\n")
    assert digest() != before


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1  # one\n", "x = 1"),
        ('"""A module."""\n\nx = "# no comment"\n', 'x = "# no comment"'),
        ('def f():\n    """One\n    # two\n    """\n    return 1\n', "def f():\n    return 1"),
        ("def f():\n    'only this'\n", "def f():"),
        ("x = 1  # one\n\f\ny = 2  # two\n", "x = 1\ny = 2"),
        ("# only this", ""),
        ("", ""),
    ],
)
def test_code_without_its_comments(text: str, code: str) -> None:
    assert code_of(text) == code


def test_every_method_has_a_digest() -> None:
    plugins.load()
    found = {name: source_digest(PEFT.get(name)) for name in PEFT.names()}
    assert all(found.values())
    assert len({found[name] for name in ("lora", "adapter", "soft_moa", "dynmoe", "mumoe")}) == 5


def test_a_class_of_no_file_has_none() -> None:
    assert source_digest(type("Typed", (), {"__module__": "typed_in_a_notebook"})) is None
