"""Command lines that must be refused."""

from pathlib import Path

import pytest
from hostile import Hostile, check_refused
from programs import ROOT

TABLE = (
    Hostile("unknown command", ["toolkit", "lst"], ["invalid choice: 'lst'"]),
    Hostile("unknown option", ["toolkit", "list", "peft", "--typo"], ["--typo"]),
    Hostile(
        "misspelt setting",
        ["toolkit", "train", "ESC50", "lora", "--peft.rnk", "4"],
        ["rnk", "did you mean 'rank'"],
    ),
)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)
