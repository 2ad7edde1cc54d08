"""Experiments: what they say about themselves."""

from pathlib import Path

import pytest
from recipe import ROOT

from toolkit import config, places
from toolkit.training import experiment
from toolkit.training.experiment import Experiment, main

TRAIN = ROOT / "recipes" / "ESC50" / "train.py"


@pytest.mark.parametrize(
    ("hparams", "command"),
    [("hparams/lora.yaml", "toolkit train ESC50 lora"), (None, "toolkit train ESC50 mine.yaml")],
)
def test_the_command_that_starts_an_installed_recipe(
    hparams: str | None, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration of the recipe is given by name, a file of the user's by its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "SHIPPED", ROOT)
    monkeypatch.setattr(places, "installed", lambda: False)
    Path("mine.yaml").write_text("extends: ESC50/hparams/base.yaml\npeft: lora\n")
    words = config.parse_command_line([hparams or "mine.yaml"])
    assert Experiment.of(str(TRAIN), words).command == command


@pytest.mark.parametrize(
    ("first", "says"), [(True, "another process of this job has ended"), (False, "")]
)
def test_a_process_whose_job_has_ended_has_no_traceback(
    first: bool, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that refused has said why."""

    def run(arguments: object) -> None:
        raise RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:46240")

    monkeypatch.setattr(experiment, "if_main_process", lambda: first)
    with pytest.raises(SystemExit) as ended:
        main(run)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and says in said and bool(said) == bool(says)
