"""The direction of knowledge: no import of the library runs upward, not even a late one."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEVELS = [
    {
        "errors",
        "foreign",
        "files",
        "own_folders",
        "device",
        "os_errors",
        "program",
        "literal_text",
        "parameters",
        "places",
        "postponed",
        "processes",
        "system",
        "typed_json",
        "settings",
        "padding",
        "__init__",
    },
    {"registry"},
    {"plugins", "description", "source_code"},
    {"routing"},
    {"experts"},
    {"features"},
    {"data", "backbones"},
    {"peft"},
    {"task", "metrics", "model", "counting", "adaptation"},
    {"results", "bundle"},
    {"inference"},
    {"mixtures"},
    {"config"},
    {"training"},
    {"study"},
    {"testing"},
    {"cli", "scaffold", "recipes", "__main__"},
]
"""The parts of the library, lowest first; parts of one level must not form a circle either."""

NOT_YET: dict[str, str] = {}
"""Modules that still import upward -> why. Must be empty."""


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the library."""
    files = sorted((ROOT / "toolkit").rglob("*.py"))
    names = (file.relative_to(ROOT).with_suffix("").parts for file in files)
    dotted = (".".join(name).removesuffix(".__init__") for name in names)
    return dict(zip(dotted, files, strict=True))


def part(module: str) -> str:
    """The file or folder of the library in which a module lies."""
    return [*module.split("."), "__init__"][1]


def imports(module: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The library's modules that one of them imports.

    The registry names the classes that it holds, and the package its public names, for the type
    checker alone; nothing else may.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if module in ("toolkit.registry", "toolkit"):
        tree.body = [n for n in tree.body if not ast.unparse(n).startswith("if TYPE_CHECKING:")]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports from the root"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in members}
    return {name for name in found if name.split(".")[0] == "toolkit"}


def test_every_part_has_a_level() -> None:
    assert not {part(module) for module in modules()} - set().union(*LEVELS)


def test_no_import_runs_upward() -> None:
    known = modules()
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    upward: dict[str, list[str]] = {}
    for module, file in known.items():
        for other in imports(module, file, known):
            if level[part(other)] > level[part(module)]:
                upward.setdefault(module, []).append(other)
    assert upward.keys() == NOT_YET.keys(), upward


def test_no_circle_of_parts() -> None:
    known = modules()
    below: dict[str, set[str]] = {part(module): set() for module in known}
    for module, file in known.items():
        if module not in NOT_YET:
            below[part(module)] |= {part(o) for o in imports(module, file, known)} - {part(module)}
    while free := {name for name, others in below.items() if not others}:
        below = {name: others - free for name, others in below.items() if name not in free}
    assert not below, f"these import each other: {below}"


def test_the_documentation_draws_this_order() -> None:
    """Beside the library it lists nothing else; `__init__` and `__main__` are left out."""
    drawn = "\n".join("  ".join(sorted(n for n in names if n[:2] != "__")) for names in LEVELS)
    assert drawn in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
