"""Every PEFT method on every backbone: what works, what merges, and why a cell cannot exist.

Apart from `testing`, whose checks it runs, because it is for a user to read.
"""

import dataclasses
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch

from toolkit.errors import ConfigError, ToolkitError
from toolkit.registry import BACKBONES, PEFT
from toolkit.testing import checks
from toolkit.testing.tiny import tiny_classifier

Verdict = Literal["works", "merges", "impossible", "broken"]
SIGNS: dict[Verdict, str] = {"works": "+", "merges": "m", "impossible": "-", "broken": "!"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method on a backbone.

    Attributes:
        method, family: their registered names.
        verdict: works (starts as the frozen backbone where it should, trains what it should,
            lowers the loss, is saved exactly); merges (and is folded into the weights exactly);
            impossible (refused with a reason); broken (a check failed).
        reason: why it is impossible or broken.
    """

    method: str
    family: str
    verdict: Verdict
    reason: str = ""


def families() -> list[str]:
    """The registered backbones that have a small random one; one that is embedded has weights."""
    return [name for name in BACKBONES.names() if "model_type" in BACKBONES.peek(name).metadata]


def cell(method: str, family: str) -> Cell:
    """Check a method, with its default settings, on a small random backbone."""
    made = PEFT.create(method)
    try:
        tiny_classifier(made, family=family)
    except ConfigError as error:
        return Cell(method, family, "impossible", reason_of(error))
    except Exception as error:  # a method may raise anything
        return Cell(method, family, "broken", reason_of(error))
    try:
        with torch.random.fork_rng(devices=[]):
            checks.check_identity(made, family)
            checks.check_training(made, family=family)
            checks.check_saving(made, family)
            merges = checks.check_merging(made, family)
    except Exception as error:  # a method may raise anything
        return Cell(method, family, "broken", reason_of(error))
    return Cell(method, family, "merges" if merges else "works")


def reason_of(error: Exception) -> str:
    """Why a check failed, in one line: the message, or else what was raised and where."""
    lines = str(error).strip().splitlines()
    notes = "; ".join(getattr(error, "__notes__", ()))
    if lines and isinstance(error, AssertionError | ToolkitError):
        return lines[0]
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"
    return f"{text} ({Path(place.filename).name}, line {place.lineno}){notes and f'; {notes}'}"


def cells(methods: Iterable[str], backbones: Iterable[str]) -> Iterator[Cell]:
    """The cells of some methods and backbones, method by method."""
    backbones = list(backbones)
    return (cell(method, family) for method in methods for family in backbones)


def rows(found: Iterable[Cell]) -> list[list[str]]:
    """One row per method: its name, and a sign for each backbone."""
    signs: dict[str, list[str]] = {}
    for c in found:
        signs.setdefault(c.method, []).append(SIGNS[c.verdict])
    return [[method, *verdicts] for method, verdicts in signs.items()]


def notes(found: Iterable[Cell]) -> list[str]:
    """What the signs mean, and why cells are impossible or broken."""
    legend = "+ works   m works and merges exactly   - cannot exist   ! broken"
    return [legend, *(f"{c.method} on {c.family}: {c.reason}" for c in found if c.reason)]
