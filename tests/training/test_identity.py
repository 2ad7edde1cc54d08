"""What makes a run another one: a change is refused by name, and can be overwritten."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from finished_run import WORDS, copy_finished_run
from recipe import ROOT, TRAIN

from toolkit.bundle import load_bundle
from toolkit.errors import ConfigError, DataError, PlaceError, RunError
from toolkit.features import cache
from toolkit.registry import REGISTRIES
from toolkit.results import RunResult, read_fold, read_run
from toolkit.training.experiment import Experiment
from toolkit.training.folds import cross_validate

PLUGIN = ROOT / "plugins" / "ssf"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder of a finished run of the linear probe, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return copy_finished_run(tmp_path)


def again(*options: str) -> RunResult:
    """Start the run once more."""
    return cross_validate(Experiment.from_command_line(str(TRAIN), [*WORDS, *options]))


def test_nothing_changed_nothing_read(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once hashed, no clip is read again; neither is the backbone loaded."""
    before = (out / "result.json").read_bytes()
    again()

    def never(*arguments: object) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr(cache, "_hash_file", never)
    monkeypatch.setattr("toolkit.backbones.base._READ", {})
    monkeypatch.setattr("transformers.ASTModel.from_pretrained", never)
    again()
    assert capsys.readouterr().out.count("finished and stays as it is") == 2
    assert (out / "result.json").read_bytes() == before


def test_clips_at_another_place_are_the_same(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("mini", "elsewhere")
    again("--data_folder", str(Path("elsewhere").resolve()))
    assert "finished and stays as it is" in capsys.readouterr().out


def test_without_the_clips_the_result_is_still_shown(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("mini")
    again()
    said = capsys.readouterr().out
    assert "no longer there" in said and "finished and stays as it is" in said


def _rows() -> pd.DataFrame:
    return pd.read_csv("mini/meta/esc50.csv")


def _write(table: pd.DataFrame) -> None:
    table.to_csv("mini/meta/esc50.csv", index=False)


def a_class_more() -> None:
    """A copy of five clips under a new class, with other content."""
    table = _rows()
    new = table[table["target"] == 0].assign(target=99, category="crow")
    new["filename"] = [f"{name[:-4]}-crow.wav" for name in new["filename"]]
    for old, name in zip(table[table["target"] == 0]["filename"], new["filename"], strict=True):
        content = bytearray(Path("mini/audio", old).read_bytes())
        content[-1] ^= 1
        Path("mini/audio", name).write_bytes(content)
    _write(pd.concat([table, new]))


def another_label() -> None:
    """Two clips of one fold exchange their classes."""
    table = _rows()
    first = table.index[table["fold"] == 2][:2]
    table.loc[first, ["target", "category"]] = table.loc[first[::-1], ["target", "category"]].values
    _write(table)


def another_fold() -> None:
    """Two clips of one class exchange their folds."""
    table = _rows()
    first = table.index[table["target"] == 0][:2]
    table.loc[first, "fold"] = table.loc[first[::-1], "fold"].values
    _write(table)


def another_sound() -> None:
    """One sample of one clip."""
    file = sorted(Path("mini/audio").iterdir())[0]
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


CHANGES = {
    a_class_more: ["classes: 10 classes", "11 classes", "clips of class crow: none there, 5 clips"],
    another_label: ["clips of class", "clips of fold 2: 10 clips"],
    another_fold: ["clips of class", "clips of fold"],
    another_sound: ["clips of class", "clips of fold"],
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("finished", [True, False])
def test_other_clips_are_refused(change, finished: bool, out: Path) -> None:
    if not finished:
        (out / "result.json").unlink()
    files = {f: f.read_bytes() for f in out.rglob("*") if f.is_file() and f.name != "log.txt"}
    change()
    with pytest.raises(RunError) as refused:
        again()
    for words in (*CHANGES[change], "--output_folder", "--overwrite"):
        assert words in str(refused.value)
    assert files == {f: f.read_bytes() for f in files}


def test_overwrite_replaces_a_run_and_nothing_else(out: Path) -> None:
    a_class_more()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(PlaceError, match=r"also holds notes\.txt"):
        again("--overwrite")
    assert len(read_run(out).classes) == 10
    (out / "notes.txt").rename(out.with_name("notes.txt"))
    (out / "fold-9").mkdir()
    result = again("--overwrite")
    assert len(result.classes) == 11 and read_run(out) == result
    assert not (out / "fold-9").exists()
    assert again().classes == result.classes


def test_overwrite_leaves_the_same_run_alone(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that a job that is killed and started by the same command continues."""
    again("--overwrite")
    assert "finished and stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", ["result.json", "fold-1/fold.json", "identity.json"])
def test_overwrite_replaces_what_is_damaged(damaged: str, out: Path) -> None:
    before = read_run(out)
    (out / damaged).write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        again()
    after = again("--overwrite")
    assert after.score == before.score and read_run(out) == after


def test_overwrite_does_not_go_with_test_only(out: Path) -> None:
    with pytest.raises(ConfigError, match="--test_only"):
        again("--overwrite", "--test_only")


def test_overwrite_keeps_a_run_whose_successor_cannot_start(out: Path) -> None:
    """The corpus is missing: what was found before is still there."""
    shutil.rmtree("mini")
    before = (out / "result.json").read_bytes()
    with pytest.raises(DataError, match="mini"):
        again("--lr", "0.25", "--overwrite")
    assert (out / "result.json").read_bytes() == before


def test_a_run_of_before_identities_is_still_finished(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what is not compared; the configuration still is."""
    (out / "identity.json").unlink()
    for file in (out / "result.json", out / "fold-1" / "fold.json"):
        values = json.loads(file.read_text())
        for key in ("checksum", "processes", "identity", "predictions"):
            values.pop(key, None)
        file.write_text(json.dumps(values))
    text = (out / "hyperparams.yaml").read_text()
    old = [line for line in text.splitlines() if not line.startswith(("windows", "overwrite"))]
    (out / "hyperparams.yaml").write_text("\n".join(old))
    another_sound()
    again()
    said = capsys.readouterr().out
    assert said.count("taken to be as they were") == 1 and "finished and stays as it is" in said
    with pytest.raises(RunError, match=r"lr: \S+ there, 0.25 now"):
        again("--lr", "0.25")
    with pytest.raises(RunError, match="windows: not set there, first now"):
        again("--windows", "first")


def test_a_fold_of_other_clips_is_refused(out: Path) -> None:
    """A fold that was copied here from another run, or one whose identity.json was deleted."""
    (out / "result.json").unlink()
    (out / "identity.json").unlink()
    another_sound()
    with pytest.raises(RunError, match="made with other clips"):
        again()


def test_the_result_records_the_processes(out: Path) -> None:
    assert read_run(out).processes == {1: 1} and read_fold(out / "fold-1").processes == 1


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plugin of the working directory, known to this test alone."""
    monkeypatch.chdir(tmp_path)
    copy_finished_run(tmp_path)
    folder = tmp_path / "mine" / "own_ssf"
    folder.mkdir(parents=True)
    text = (PLUGIN / "ssf.py").read_text().replace('register("ssf"', 'register("own_ssf"')
    (folder / "own_ssf.py").write_text(text)
    before = {kind: registry.snapshot() for kind, registry in REGISTRIES.items()}
    yield folder / "own_ssf.py"
    for kind, registry in REGISTRIES.items():
        registry.restore(before[kind])


def test_a_changed_method_is_noticed(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the run, which refuses, and by the bundle, which warns; not a changed comment."""
    options = ["--plugins", str(plugin.parent), "--peft", "own_ssf", "--output_folder", "own"]
    again(*options)
    plugin.write_text(plugin.read_text() + "\n# a remark\n")
    again(*options)
    assert "finished and stays as it is" in capsys.readouterr().out
    load_bundle("own/bundle")
    assert "source of the method" not in capsys.readouterr().err
    plugin.write_text(plugin.read_text() + "\nCONSTANT = 2\n")
    with pytest.raises(RunError, match=r"source of the method own_ssf: \w+ there, \w+ now"):
        again(*options)
    load_bundle("own/bundle")
    assert "the source of the method 'own_ssf' has changed since" in capsys.readouterr().err
    again(*options, "--overwrite")
    load_bundle("own/bundle")
    assert "source of the method" not in capsys.readouterr().err
