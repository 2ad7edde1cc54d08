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
TRAINING = re.compile(r"(toolkit train|python \S*train\.py)\s")
EMBEDDED = re.compile(r"(toolkit train ESC50|python \S*ESC50/train\.py)\s")


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
    """A bash block whose trainings take seconds.

    One epoch; of the embedded demonstration of ESC50 also one fold and five clips per class.
    """
    lines = code.replace("\\\n", " ").splitlines()
    return "\n".join(_shortened(line) for line in lines)


def _shortened(line: str) -> str:
    if not TRAINING.match(line):
        return line
    command = line.partition("  #")[0]
    small = "--data_folder" not in command and EMBEDDED.match(command)
    return f"{command} --epochs 1" + (" --folds 1 --corpus.clips_per_class 5" if small else "")
