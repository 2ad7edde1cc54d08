"""A study of a corpus whose clips may have several classes: run, timed and reported."""

import subprocess
from pathlib import Path

import pytest
from programs import warm_programs
from recipe import ROOT

from toolkit.study.records import read_record, read_timing
from toolkit.study.report.load import Results
from toolkit.study.report.write import write_report

STUDY = """
study: several
corpora:
  miniature:
    recipe: RECIPE
    overrides: {epochs: 1}
methods: [linear]
seeds: [1]
baseline: linear
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study after a run and a round of timings, each by its command line."""
    place = tmp_path_factory.mktemp("several")
    (place / "several.yaml").write_text(STUDY.replace("RECIPE", str(ROOT / "recipes" / "FSD50K")))
    command = [warm_programs() / "python", str(ROOT / "tools" / "benchmark.py"), "several.yaml"]
    for further in ([], ["--timings", "--rounds", "1"]):
        done = subprocess.run(
            [*command, "--output", "out", *further], cwd=place, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "failed" not in done.stdout, done.stdout
    return place / "out"


def test_its_record_names_the_metric(folder: Path) -> None:
    [file] = folder.glob("runs/**/record.json")
    outcome = read_record(file.parent).found()
    [fold] = outcome.folds
    assert outcome.metric == "mAP" and 0 < fold.score <= 1
    assert fold.uar is None and fold.confusion is None


def test_it_is_timed(folder: Path) -> None:
    [file] = folder.glob("runs/**/record.json")
    timing = read_timing(folder, read_record(file.parent).step)
    assert timing.median("samples_per_second") > 0


def test_it_has_a_report(folder: Path, tmp_path: Path) -> None:
    assert list(write_report(Results.read(folder), tmp_path))
    assert "linear" in (tmp_path / "report.md").read_text(encoding="utf-8")
