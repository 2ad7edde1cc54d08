"""What commands that write need to begin with: a corpus, a bundle, a study with results."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import studies
from bundles import tiny_bundle

PRECIOUS = "precious.txt"


@functools.cache
def made() -> Path:
    """A folder with a `bundle`, its `corpus` as ESC-50, and a study: `quick.yaml`, `results`."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny_bundle(folder / "tiny", "soft_moa").rename(folder / "bundle")
    next((folder / "tiny" / "corpus").glob("seed-*")).rename(folder / "corpus")
    recipe = studies.quick_recipe(folder)
    study = studies.study_of(recipe)
    study.write(folder)
    (folder / "study.yaml").rename(folder / "quick.yaml")
    list(studies.benchmark(study, folder / "results").run("local", 1))
    return folder


def prepared(*preparations: Callable[[Path], object]) -> Callable[[Path], None]:
    """Prepare a folder: links to all that was `made`, then each of the preparations."""

    def prepare(folder: Path) -> None:
        for path in made().iterdir():
            (folder / path.name).symlink_to(path)
        for preparation in preparations:
            preparation(folder)

    return prepare


def precious(place: str) -> Callable[[Path], None]:
    """Put a file of the user's into a folder."""

    def write(folder: Path) -> None:
        file = folder / place / PRECIOUS
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine", encoding="utf-8")

    return write


def own(place: str, content: str = "mine") -> Callable[[Path], None]:
    """Write a file of the user's."""

    def write(folder: Path) -> None:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(content, encoding="utf-8")

    return write
