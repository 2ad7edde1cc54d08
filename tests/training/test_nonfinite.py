"""Predictions that are not numbers stop a run: they would count as the first class."""

from pathlib import Path

import pytest
import speechbrain as sb
import torch
from finished_run import WORDS, copy_finished_run
from recipe import TRAIN
from torch import Tensor

from toolkit.errors import RunError
from toolkit.features.batch import Batch
from toolkit.training.brain import ClassificationBrain
from toolkit.training.experiment import Experiment
from toolkit.training.folds import cross_validate

FORWARD = ClassificationBrain.compute_forward


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spoilt_stage", [sb.Stage.VALID, sb.Stage.TEST])
def test_a_run_stops_and_names_the_clips(
    value: float, spoilt_stage: sb.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In validation and in the test; no result is left."""
    monkeypatch.chdir(tmp_path)
    copy_finished_run(tmp_path)
    spoilt: list[str] = []

    def spoil(brain: ClassificationBrain, batch: Batch, stage: sb.Stage) -> tuple[Tensor, Tensor]:
        logits, targets = FORWARD(brain, batch, stage)
        if stage == spoilt_stage and not spoilt:
            spoilt.append(batch.ids[1])
            logits = logits.clone()
            logits[1] = torch.full_like(logits[1], value)
        return logits, targets

    monkeypatch.setattr(ClassificationBrain, "compute_forward", spoil)
    experiment = Experiment.from_command_line(str(TRAIN), [*WORDS[:-1], "other"])
    with pytest.raises(RunError, match="1 of 10 clips are not numbers in epoch") as refused:
        cross_validate(experiment)
    assert spoilt[0] in str(refused.value) and "--lr" in str(refused.value)
    assert not (tmp_path / "other" / "result.json").exists()
    assert not (tmp_path / "other" / "fold-1" / "fold.json").exists()
