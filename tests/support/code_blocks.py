"""Code blocks of Markdown pages."""

import dataclasses
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)(?P<options>.*)")
TITLE = re.compile(r'title="([^"]+)"')
NOT_RUN = re.compile(r"\s*<!-- not run: (.+) -->")
TRAIN = r"(toolkit train|(python|torchrun) .*train\.py) "
SHORTENED = {
    rf"{TRAIN}.*--data_folder data/.*--backbone": "--debug",
    rf"{TRAIN}.*--data_folder data/": "--debug --backbone ast_tiny --max_length 64",
    rf"{TRAIN}.*--data_folder": "--epochs 1",
    r"(toolkit train|python) \S*ESC50": "--epochs 1 --folds 1 --corpus.clips_per_class 5 "
    "--max_length 64",
    TRAIN: "--epochs 1",
    "toolkit search": "--epochs 1 --corpus.clips_per_class 5 --max_length 64 --iterations 1 "
    "--population 4",
    "toolkit (compress|prune) (?!.*--data_folder)": "--corpus synthetic:clips_per_class=5 "
    '--data_folder "$TOOLKIT_CACHE/synthetic"',
    "toolkit corpus check data/": "2> complaint || grep 'of the published corpus' complaint",
    "toolkit study time": "--rounds 1 --only '*linear*'",
    "python -m pytest": "--collect-only -n 0",
}
"""How a command begins -> what it is followed by; the first that fits."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        place: page and line, for messages.
        language: of the fence; empty if none is given.
        code: its text.
        title: the file that it is written to, if it has a title.
        reason: why it is not run, if the comment above it says so.
    """

    place: str
    language: str
    code: str
    title: str | None
    reason: str | None


def pages() -> list[Path]:
    """Every page with blocks that a reader may copy."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    found += [*ROOT.glob("recipes/*/README.md"), *ROOT.glob("plugins/*/README.md")]
    return sorted(page.relative_to(ROOT) for page in found)


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    lines = iter(enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1))
    above = ""
    for number, line in lines:
        opened = FENCE.fullmatch(line)
        if opened is None:
            above = line if line.strip() else above
            continue
        closing = f"{opened['indent']}```"
        code = list(itertools.takewhile(closing.__ne__, (text for _, text in lines)))
        title, reason = TITLE.search(opened["options"]), NOT_RUN.fullmatch(above)
        yield Block(
            place=f"{page}:{number}",
            language=opened["language"],
            code=textwrap.dedent("\n".join(code)) + "\n",
            title=title and title[1],
            reason=reason and reason[1],
        )
        above = ""


def shortened(code: str) -> str:
    """A bash block whose commands take seconds, as `SHORTENED` says.

    Trainings have one epoch: on corpora in `data`, which are miniatures, of two batches with the
    embedded backbone; in the embedded demonstration of ESC50, of one fold with five clips per
    class. The check of a corpus in `data` may complain that it is not the whole published one. The
    tests of a plugin are only collected: they are run with all others.
    """
    lines = code.replace("\\\n", " ").splitlines()
    return "\n".join(_shortened(line) for line in lines)


def _shortened(line: str) -> str:
    command = line.partition("  #")[0]
    added = next((more for begin, more in SHORTENED.items() if re.match(begin, command)), None)
    return line if added is None else f"{command.rstrip()} {added}"
