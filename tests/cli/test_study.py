"""`toolkit study run`, `time` and `report`: what they print, write and refuse."""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import studies

from toolkit.cli import main
from toolkit.cli import study as commands
from toolkit.errors import ConfigError
from toolkit.study.plan import read_plan
from toolkit.study.run import timing_rounds


def call(words: Sequence[str]) -> None:
    """Run a command line as `toolkit` does."""
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--plugins", action="append", default=[])
    commands.add(parser.add_subparsers(required=True), common)
    trusted = ["--recipe", "Quick"] if words[0] != "report" else []
    options = parser.parse_args(["study", *words, *trusted])
    options.run(options)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a study whose runs finish immediately, in the working directory."""
    monkeypatch.chdir(tmp_path)
    studies.study_of(studies.quick_recipe(tmp_path)).write(tmp_path)
    return (tmp_path / "study.yaml").rename(tmp_path / "quick.yaml")


def test_a_study_is_listed_run_and_reported(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listing writes no files; results go to the default folder, which later commands accept."""
    call(["run", str(file), "--dry-run"])
    assert "0 of 4 runs are done, 4 to execute" in capsys.readouterr().out
    folder = file.parent / "results" / "studies" / "quick"
    assert not folder.exists()
    call(["run", str(file), "--only", "two/linear*", "--limit", "1"])
    said = capsys.readouterr().out
    assert "two/linear/ast_tiny/all/seed-1/fold-1: " in said
    assert said.endswith(f"tables and pictures: toolkit study report {folder}\n")
    assert len(read_plan(folder).digests) == 4
    call(["run", str(folder)])
    assert "[3/3" in capsys.readouterr().out
    for place in (file, folder):
        call(["report", str(place)])
        assert f"wrote {folder / 'report' / 'report.html'}" in capsys.readouterr().out


def test_a_recipe_of_the_study_itself_is_not_run(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless the user names it: its train.py may have come with the study."""
    (file.parent / "Quick" / "train.py").write_text("open('../sentinel', 'w')\n")
    main(["study", "run", str(file), "--dry-run"])
    assert "which is not the toolkit's: if you trust it, add `--recipe " in (
        " ".join(capsys.readouterr().out.split())
    )
    with contextlib.suppress(SystemExit):
        main(["study", "run", str(file)])
    assert not (file.parent / "sentinel").exists()


def test_a_failed_run_is_the_exit_status(file: Path) -> None:
    (file.parent / "Quick" / "lora.fails").touch()
    with pytest.raises(SystemExit, match="1"):
        call(["run", str(file), "-o", "elsewhere"])
    assert (file.parent / "elsewhere" / "plan.json").is_file()


def test_an_unknown_engine_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"no engine 'rai'.*'ray'.*known: local, ray"):
        call(["run", str(file), "--engine", "rai"])


def test_a_study_is_timed(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once per round and method, independent of the number of folds; the plan is saved too."""
    monkeypatch.setattr(timing_rounds, "_measure", lambda folder, run, timing: "measured")
    call(["time", str(file), "--rounds", "2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round")]
    assert [line.split()[1:3] for line in lines] == [
        ["1/2", "linear"], ["1/2", "lora"], ["2/2", "linear"], ["2/2", "lora"],
    ]  # fmt: skip
    assert read_plan(file.parent / "results" / "studies" / "quick") is not None


def test_an_interrupted_study_says_how_to_go_on(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*words: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(timing_rounds, "_measure", interrupt)
    with pytest.raises(SystemExit, match="130"):
        main(["study", "time", str(file), "--recipe", "Quick"])
    assert "the same command continues" in capsys.readouterr().err
