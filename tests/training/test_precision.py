"""`precision: auto`: what is chosen, that it is remembered, and that a run keeps what it began."""

from pathlib import Path

import pytest
from finished_run import WORDS, copy_finished_run
from recipe import TRAIN

from toolkit.errors import ConfigError, RunError
from toolkit.results import RunResult, read_run
from toolkit.training import precision
from toolkit.training.experiment import Experiment
from toolkit.training.folds import cross_validate
from toolkit.training.identity import recorded


def machine(monkeypatch: pytest.MonkeyPatch, native: bool = True, speedup: float = 2.0) -> None:
    """Pretend to be a machine on which products in bf16 are so many times as fast."""
    monkeypatch.setattr(precision, "is_native", lambda device: native)
    monkeypatch.setattr(precision, "measured_speedup", lambda device: speedup)


@pytest.mark.parametrize(
    ("native", "speedup", "name", "reason"),
    [
        (True, 2.0, "bf16", "2.0 times as fast as in fp32"),
        (True, 1.2, "bf16", "1.2 times"),
        (True, 1.1, "fp32", "1.1 times"),
        (True, 0.01, "fp32", "0.0 times"),
        (False, 9.0, "fp32", "bf16 is not native to this"),
    ],
)
def test_bf16_is_chosen_where_it_is_native_and_faster(
    native: bool, speedup: float, name: str, reason: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    machine(monkeypatch, native, speedup)
    choice = precision.fastest("cpu", tmp_path)
    assert choice.name == name and reason in choice.reason


def test_a_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, speedup=2.0)
    precision.fastest("cpu", tmp_path)
    machine(monkeypatch, speedup=0.5)
    assert precision.fastest("cpu", tmp_path).name == "bf16"
    monkeypatch.setattr(precision, "processor", lambda device: "another")
    assert precision.fastest("cpu", tmp_path).name == "fp32"


def test_a_damaged_memory_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, speedup=2.0)
    precision.fastest("cpu", tmp_path)
    (file,) = (tmp_path / "precision").iterdir()
    file.write_text("x")
    machine(monkeypatch, speedup=0.5)
    assert precision.fastest("cpu", tmp_path).name == "fp32"


def test_the_measurement_is_a_ratio() -> None:
    assert precision.measured_speedup("cpu") > 0


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder of a finished run in fp32, and a machine that prefers bf16."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    machine(monkeypatch)
    return copy_finished_run(tmp_path)


def start(*options: str) -> RunResult:
    return cross_validate(Experiment.from_command_line(str(TRAIN), [*WORDS, *options]))


def test_a_run_records_what_was_chosen(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start("--precision", "auto", "--output_folder", "new")
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("precision: bf16 (on this ")]
    kept = recorded(Path("new"))
    assert kept is not None
    found = [kept.configuration[name] for name in precision.OPTIONS]
    assert found == ["bf16", "fp32"]
    assert read_run(Path("new")).configuration["precision"] == "bf16"
    start("--output_folder", "new", "--precision", "bf16")  # says the same
    with pytest.raises(RunError, match="precision: bf16 there, fp32 now"):
        start("--output_folder", "new")


def test_a_run_continues_as_it_began(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever this machine would prefer."""
    before = read_run(out)
    assert start("--precision", "auto", "--eval_precision", "auto") == before
    (out / "result.json").unlink()
    (out / "fold-1" / "fold.json").unlink()
    start("--precision", "auto", "--eval_precision", "auto")
    said = capsys.readouterr().out
    assert "precision: fp32 (as the run here began)" in said
    assert "eval_precision: fp32 (as the run here began)" in said
    assert read_run(out).score.mean == before.score.mean


def test_a_run_that_is_replaced_begins_anew(out: Path) -> None:
    start("--precision", "auto", "--lr", "0.004", "--overwrite")
    assert read_run(out).configuration["precision"] == "bf16"


def test_without_a_folder_it_is_chosen_too(out: Path) -> None:
    words = [*WORDS, "--precision", "auto", "--eval_precision", "auto"]
    settled = Experiment.from_command_line(str(TRAIN), words).settled()
    assert [settled.run_opts()[name] for name in precision.OPTIONS] == ["bf16", "bf16"]
    assert settled.settled() is settled


def test_an_unknown_precision() -> None:
    with pytest.raises(ConfigError, match=r"'precision' must be one of .*did you mean 'auto'"):
        Experiment.from_command_line(str(TRAIN), ["hparams/linear.yaml", "--precision", "atuo"])
