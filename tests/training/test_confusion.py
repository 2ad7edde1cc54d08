"""The picture of a confusion matrix, for classes of any name."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from finished_run import WORDS, copy_finished_run
from recipe import TRAIN

from toolkit.literal_text import literal
from toolkit.training.confusion import draw_confusion
from toolkit.training.experiment import Experiment
from toolkit.training.folds import cross_validate

NAMES = [
    "$\\frac{$", "$x$", "a$b$c", "\\$y$", "$$", "$\\notacommand$", "a\nb", "tab\tbed", "\x00z",
    "犬", "\udce9", "%^&#~{}", "\\", "",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_any_name_is_drawn(kind: str) -> None:
    picture = BytesIO()
    draw_confusion(np.eye(len(NAMES), dtype=int), NAMES).savefig(picture, format=kind)
    assert picture.tell() > 1000


def test_a_name_is_no_formula() -> None:
    """In the picture the dollars are there, and what they enclose is not set."""
    svg = BytesIO()
    draw_confusion(np.eye(1, dtype=int), ["$x_1$ and $"]).savefig(
        svg, format="svg", metadata={"Title": literal("$x_1$")}
    )
    assert b"<!-- $x 1$ and $ -->" in svg.getvalue()


def test_a_run_with_such_a_class_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy_finished_run(tmp_path)
    table = tmp_path / "mini" / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace(",rain,", ",$\\frac{$,"))
    words = [*WORDS[:-1], "other"]
    result = cross_validate(Experiment.from_command_line(str(TRAIN), words))
    assert "$\\frac{$" in result.classes and (tmp_path / "other" / "confusion.png").is_file()
