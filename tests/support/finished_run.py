"""A finished run to look at or to damage: made once per process, copied as often as needed."""

import functools
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from recipe import SMALL, run

from toolkit.data.synthetic.corpus import write_corpus

WORDS = (
    "hparams/linear.yaml", *SMALL, "--data_folder", "mini", "--folds", "1",
    "--output_folder", "out",
)  # fmt: skip
"""The words of its command line, which is started in the folder that holds `mini` and `out`."""


@functools.cache
def _made() -> TemporaryDirectory[str]:
    made = TemporaryDirectory(prefix="finished-run-")
    write_corpus(Path(made.name, "mini"), clips_per_class=5, seconds=0.6, progress=False)
    done = run(*WORDS, cwd=Path(made.name))
    assert done.returncode == 0, done.stderr
    return made


def copy_finished_run(folder: Path) -> Path:
    """Copy the run (`out`) and its corpus (`mini`) into a folder, which may exist.

    Returns:
        the output folder of the run.
    """
    shutil.copytree(_made().name, folder, dirs_exist_ok=True)
    return folder / "out"
