"""The wheel needs no checkout: it is installed into an environment of its own and used there."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe import ROOT

Run = Callable[..., str]
QUICK = ["--debug", "--max_length", "64"]


@pytest.fixture
def run(tmp_path: Path, shared_cache: Path) -> Run:
    """Runs a program of an environment in which the wheel is installed, in an empty folder.

    The environment finds the other packages, torch among them, in the one that runs the tests.
    """
    python = [sys.executable, "-m"]
    wheel = [*python, "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(wheel, check=True, capture_output=True)
    place, folder = tmp_path / "environment", tmp_path / "empty"
    folder.mkdir()
    venv.create(place, symlinks=True)
    purelib = Path(sysconfig.get_path("purelib", "venv", {"base": str(place)}))
    (purelib / "outer.pth").write_text(sysconfig.get_path("purelib"))
    install = [*python, "pip", "--python", str(place / "bin" / "python"), "install", "--no-deps"]
    found = [str(file) for file in tmp_path.glob("*.whl")]
    subprocess.run([*install, "--no-index", "--quiet", *found], check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["TOOLKIT_CACHE"] = str(shared_cache)

    def work(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(place / "bin" / program), *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    file = Path(work("python", "-c", "import toolkit; print(toolkit.__file__)").strip())
    assert file.parent == purelib / "toolkit"
    return work


STUDY = """
study: small
corpora: {embedded: {recipe: recipes/ESC50, folds: [1]}}
methods: [linear]
seeds: [1]
shots: [2]
baseline: linear
overrides: {epochs: 1, max_length: 64, corpus.clips_per_class: 5}
"""


def test_an_installed_copy_stands_alone(run: Run, tmp_path: Path) -> None:
    here = tmp_path / "empty"
    listed = run("toolkit", "list")
    assert "soft_moa" in listed and "ssf" in listed

    few = ["--epochs", "1", "--folds", "1", "--few_shot", "2", "--max_length", "64"]
    said = run("toolkit", "train", "ESC50", "softmoa", *few)
    assert "For the real corpus: toolkit train ESC50 softmoa --data_folder" in said
    assert (here / "results" / "ESC50-embedded" / "soft_moa" / "10" / "result.json").is_file()

    assert "wrote ESC50/train.py\nwrote ESC50/hparams\n" in run(
        "toolkit", "copy-recipe", "ESC50", "."
    )
    own = here / "ESC50" / "hparams" / "softmoa.yaml"
    own.write_text(own.read_text(encoding="utf-8") + "label: mine\n", encoding="utf-8")
    run("python", "ESC50/train.py", "hparams/softmoa.yaml", *QUICK)
    assert (here / "results" / "ESC50-embedded" / "mine" / "10-debug" / "result.json").is_file()

    run("toolkit", "new-plugin", "x")
    assert "3 passed" in run("python", "-m", "pytest", "plugins/x")
    said = run("toolkit", "train", "ESC50", "plugins/x/x.yaml", *QUICK)
    assert said.startswith("ESC50/train.py is used, not the recipe that comes with the toolkit\n")
    assert (here / "results" / "ESC50-embedded" / "x" / "10-debug" / "result.json").is_file()

    (here / "small.yaml").write_text(STUDY, encoding="utf-8")
    assert "1 to execute" in run("toolkit", "study", "run", "small.yaml", "--dry-run")
    run("toolkit", "study", "run", "small.yaml")
    run("toolkit", "study", "time", "small.yaml", "--rounds", "1")
    assert "report.html" in run("toolkit", "study", "report", "small.yaml")
    assert (here / "results" / "studies" / "small" / "report" / "report.md").is_file()
