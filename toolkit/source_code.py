"""The source code of classes and functions as digests: runs and bundles notice changes by them."""

import ast
import hashlib
import sys
import tokenize
from collections.abc import Iterator
from importlib.util import resolve_name
from io import StringIO
from pathlib import Path
from types import FunctionType
from typing import Any

METHOD_PARTS = ("toolkit.peft", "toolkit.routing", "toolkit.experts")
"""The parts of the library that methods are made of."""

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source_digest(kind: type | FunctionType) -> str | None:
    """Digest of the code of a class or a function.

    That is the module that defines it and, directly or indirectly, what this imports of the same
    package, of plugins, and of the library's parts that methods are made of. Comments, docstrings
    and blank lines do not count.

    Args:
        kind: such as `PEFT.get("lora")`.

    Returns:
        the digest; None if it comes from no file (a notebook).
    """
    if _file_of(kind.__module__) is None:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for name, code in sorted(_modules(kind.__module__).items()):
        digest.update(f"{name}\n{code}\n".encode())
    return digest.hexdigest()


def definition_of(part: Any) -> type | FunctionType:
    """The class of an object, or the class or function that a partial call is of."""
    made = getattr(part, "func", part)
    return made if isinstance(made, type | FunctionType) else type(made)


def code_of(text: str) -> str:
    """Python source without its comments, docstrings and blank lines."""
    lines = text.split("\n")  # as Python counts them: a form feed begins no line
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            for row in range(docstring.lineno - 1, docstring.end_lineno or docstring.lineno):
                lines[row] = ""
    kept = (line.rstrip() for line in lines)
    return "\n".join(line for line in kept if line)


def _modules(first: str) -> dict[str, str]:
    """The code of a module and of all that it imports, by name, as `source_digest` says."""
    package = first.rpartition(".")[0] if first.startswith("toolkit.") else first.partition(".")[0]
    roots = (package, "toolkit_plugins", *METHOD_PARTS)
    found: dict[str, str] = {}
    waiting = [first]
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if file is None or name in found:
            continue
        with tokenize.open(file) as source:  # in the encoding that it names
            text = source.read()
        found[name] = code_of(text)
        waiting += [
            other
            for other in _imports(text, name, file)
            if any(other == root or other.startswith(f"{root}.") for root in roots)
        ]
    return found


def _imports(text: str, name: str, file: Path) -> Iterator[str]:
    """The names that a module imports; they may be of modules or of things in these."""
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _file_of(name: str) -> Path | None:
    """The source file of a module, which need not be imported, though its package must be."""
    parent, _, last = name.rpartition(".")
    for place in getattr(sys.modules.get(parent), "__path__", ()):
        for file in (Path(place, f"{last}.py"), Path(place, last, "__init__.py")):
            if file.is_file():
                return file
    origin = getattr(sys.modules.get(name), "__file__", None)
    return Path(origin) if origin and origin.endswith(".py") else None
