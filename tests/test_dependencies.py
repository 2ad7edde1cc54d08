"""What is imported is declared in pyproject.toml, and what is declared is used."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from recipe import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED = packages_distributions()
EXTRAS = PROJECT["optional-dependencies"]
NOT_IMPORTED = {
    "tensorboard": "SpeechBrain's logger of events imports it",
    "pytest-xdist": "runs the tests in several processes",
    "ruff": "lints and formats",
    "build": "builds the wheel that tests install",
    "hatchling": "the wheel's build backend",
    "accelerate": "transformers' Trainer needs it",
    "lightning": "imported by a test where it is installed",
    "mypy": "checks the types",
    "mkdocs-material": "the theme of the documentation",
    "mkdocstrings": "the reference of the public API",
}


def files(tests: bool) -> list[Path]:
    """The source files of the library and its tools, or those of the tests."""
    folders = ("toolkit", "recipes", "plugins", "tools", "docs", "tests")
    found = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    found.append(ROOT / "conftest.py")
    return [
        file
        for file in found
        if tests == (ROOT / "tests" in file.parents or file.name.startswith(("test_", "conftest")))
    ]


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports, except Python's own and files of this repository."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    folders = (file.parent, ROOT, ROOT / "tests" / "support")
    neighbours = {other.stem for folder in folders for other in folder.glob("*.py")}
    own = {"toolkit", "toolkit_plugins", "tools", "generated", "method_of_a_test", *neighbours}
    return {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names


def distribution(requirement: str) -> str:
    """The name in a requirement such as `ruamel.yaml>=0.18`, as package indexes compare names."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(extras: Iterable[str] = ()) -> set[str]:
    """Distributions that pyproject.toml asks for, with some extras."""
    lists = [PROJECT["dependencies"], *(EXTRAS[name] for name in extras)]
    return {distribution(requirement) for wanted in lists for requirement in wanted}


def providers(package: str) -> set[str]:
    """Distributions that an imported package may come from."""
    return {distribution(name) for name in INSTALLED.get(package, [package])}


def used(tests: bool) -> set[str]:
    """Distributions that the library and its tools, or the tests, may import."""
    return {name for file in files(tests) for top in imported(file) for name in providers(top)}


@pytest.mark.parametrize("tests", [False, True])
def test_what_is_imported_is_declared(tests: bool) -> None:
    wanted = declared(name for name in EXTRAS if tests or name != "test")
    missing = {
        f"{file.relative_to(ROOT)} imports {package}"
        for file in files(tests)
        for package in imported(file)
        if not providers(package) & wanted
    }
    assert not missing


def test_what_is_declared_is_used() -> None:
    assert not declared() - used(tests=False) - NOT_IMPORTED.keys()
    assert not declared(EXTRAS) - used(tests=False) - used(tests=True) - NOT_IMPORTED.keys()


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    """`tools/test --oldest` tests what pyproject.toml promises."""
    lines = (ROOT / "tools" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = {}
    for requirement in (*PROJECT["dependencies"], *EXTRAS["test"]):
        found = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,<\d[\d.]*)?", requirement)
        assert found, requirement
        bounds[found[1]] = found[2]
    assert pinned.keys() == bounds.keys()
    for name, version in pinned.items():
        assert version in (bounds[name], f"{bounds[name]}.0"), name
