"""The folder of a run: who may write there, and what a refused run leaves."""

from pathlib import Path

import pytest

from toolkit import config
from toolkit.config import Configuration
from toolkit.errors import PlaceError, RunError
from toolkit.own_folders import MARK
from toolkit.training.output import OutputFolder

RECIPE = Path(__file__).parents[2] / "recipes" / "ESC50"


def configuration(*words: str) -> Configuration:
    command = config.parse_command_line(["hparams/linear.yaml", "--data_folder", "x", *words])
    return config.load(command, RECIPE)


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_run_that_is_refused_before_it_begins_leaves_nothing(tmp_path: Path) -> None:
    """So that the corrected command is not refused."""
    place = tmp_path / "a" / "out"
    with pytest.raises(RunError), OutputFolder(place, configuration("--lr", "1")):
        assert "log.txt" in listing(place)
        raise RunError("no such data")
    assert listing(tmp_path) == []
    with OutputFolder(place, configuration("--lr", "2")) as output:
        output.begin()
    assert (place / "hyperparams.yaml").is_file()


def test_a_run_that_fails_after_it_began_can_be_continued(tmp_path: Path) -> None:
    with pytest.raises(RunError), OutputFolder(tmp_path / "out", configuration()) as output:
        output.begin()
        raise RunError("a full disk")
    assert {MARK, "hyperparams.yaml", "log.txt"} <= set(listing(tmp_path / "out"))
    with OutputFolder(tmp_path / "out", configuration()):
        pass
    with pytest.raises(RunError, match="another configuration"):
        OutputFolder(tmp_path / "out", configuration("--lr", "1")).__enter__()


@pytest.mark.parametrize("fresh", [False, True])
def test_two_runs_in_one_folder(tmp_path: Path, fresh: bool) -> None:
    """The second one is refused, and leaves the files of the first alone."""
    with OutputFolder(tmp_path / "out", configuration(), fresh) as output:
        output.begin()
        before = listing(tmp_path)
        with pytest.raises(RunError, match="another process is writing"):
            OutputFolder(tmp_path / "out", configuration(), fresh).__enter__()
        assert listing(tmp_path) == before
    with OutputFolder(tmp_path / "out", configuration(), fresh):
        pass


def test_a_debug_run_replaces_an_earlier_one_alone(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with OutputFolder(place, configuration(), fresh=True) as output:
        output.begin()
        (place / "result.json").write_text("{}")
    with OutputFolder(place, configuration("--lr", "1"), fresh=True) as output:
        assert output.result() is None
    (place / "precious.txt").write_text("mine")
    with pytest.raises(PlaceError, match=r"also holds precious\.txt"):
        OutputFolder(place, configuration(), fresh=True).__enter__()
    assert (place / "precious.txt").read_text() == "mine"


def test_the_folder_of_an_older_version_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "hyperparams.yaml").write_text(configuration().text)
    (tmp_path / "result.json").write_text("{}")
    with OutputFolder(tmp_path, configuration()):
        pass
    with OutputFolder(tmp_path, configuration(), fresh=True):
        assert not (tmp_path / "result.json").exists()
