#!/usr/bin/env python
"""Print size and imports of each part of the library: `python tools/structure.py [CHECKOUT]`.

A part is a folder of `toolkit/` or a file beside these folders. The output is a Markdown table with
the number of files and lines per part, and the parts it imports with the number of imports.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def part_of(parts: tuple[str, ...]) -> str:
    """`("toolkit", "peft", "lora")` -> `"peft"`."""
    return parts[1] if len(parts) > 1 else "toolkit"


def imports(file: Path, names: frozenset[str]) -> Iterator[str]:
    """The parts of the library that a file imports, once per statement."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "toolkit":
            module = tuple((node.module or "").split("."))
            if len(module) > 1:
                yield part_of(module)
            else:
                yield from {alias.name for alias in node.names if alias.name in names}


def table(checkout: Path) -> str:
    """The table of a checkout."""
    library = checkout / "toolkit"
    names = frozenset(p.stem for p in library.iterdir() if p.suffix == ".py" or p.is_dir())
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    edges: dict[str, Counter[str]] = {}
    for file in sorted(library.rglob("*.py")):
        part = part_of(file.relative_to(checkout).with_suffix("").parts)
        files[part] += 1
        lines[part] += len(file.read_text(encoding="utf-8").splitlines())
        edges.setdefault(part, Counter()).update(r for r in imports(file, names) if r != part)
    rows = [
        f"| {part} | {files[part]} | {lines[part]} | "
        + ", ".join(f"{to} {count}" for to, count in sorted(edges[part].items()))
        + " |"
        for part in sorted(files)
    ]
    total = f"| **all** | {sum(files.values())} | {sum(lines.values())} | "
    crossing = sum(sum(to.values()) for to in edges.values())
    head = ["| part | files | lines | imports |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, f"{total}{crossing} imports between parts |"])


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()))
