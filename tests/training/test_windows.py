"""Clips that are longer than the backbone reads: trained, tested and predicted alike."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipe import TRAIN

from toolkit.bundle import load_bundle
from toolkit.data.sampling import TrainingBatches
from toolkit.data.synthetic.corpus import write_corpus
from toolkit.features.windows import over_clips, window_bounds, with_windows
from toolkit.inference.predict import predict
from toolkit.training.experiment import Experiment
from toolkit.training.folds import cross_validate
from toolkit.training.windows import DrawnWindows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty clips of 1.3 s."""
    folder = tmp_path_factory.mktemp("long") / "mini"
    return write_corpus(folder, clips_per_class=5, seconds=1.3, progress=False)


@pytest.mark.parametrize(("windows", "count"), [("average", 3), ("first", 1)])
def test_the_reported_accuracy_is_that_of_predict(
    windows: str, count: int, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clip by clip, with the bundle as its folder holds it."""
    words = f"""hparams/linear.yaml --data_folder {corpus} --backbone ast_tiny --max_length 50
        --epochs 1 --batch_size 8 --noprogressbar true --folds 2 --output_folder {tmp_path / "out"}
        --windows {windows}"""
    experiment = Experiment.from_command_line(str(TRAIN), words.split())
    result = cross_validate(experiment)
    said = capsys.readouterr().out
    assert "50 of 50 clips are longer than the 0.5 s of the backbone" in said
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("id")
    assert len(table) == 10
    clips = experiment.manifest().of_folds([2]).set_index("id")
    bundle = load_bundle(tmp_path / "out" / "bundle")
    assert bundle.windows == windows
    right = []
    for name, found in zip(clips.index, predict(bundle, clips["path"]), strict=True):
        assert len(found.windows) == count
        expected = table.loc[name, [f"p_{label}" for label in bundle.classes]].to_numpy(float)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
        assert found.label == table.loc[name, "prediction"]
        right.append(found.label == table.loc[name, "truth"])
    assert result.score.folds[2] == pytest.approx(np.mean(right))


def test_no_clip_is_longer_and_nothing_is_said(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"""hparams/linear.yaml --data_folder {corpus} --backbone ast_tiny --max_length 140
        --debug --noprogressbar true --output_folder {tmp_path / "out"}"""
    cross_validate(Experiment.from_command_line(str(TRAIN), words.split()))
    assert "are longer than" not in capsys.readouterr().out


@given(st.integers(0, 500), st.integers(1, 100))
def test_windows_cover_a_clip_but_for_a_sliver(rows: int, length: int) -> None:
    bounds = window_bounds(rows, length)
    assert bounds[0][0] == 0 and all(0 <= end - begin <= length for begin, end in bounds)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))
    assert 0 <= rows - bounds[-1][1] < max(length / 10, 1)
    assert window_bounds(rows, length, "first") == bounds[:1]
    assert (len(bounds) == 1) == (rows < length + max(length / 10, 1))


def test_a_table_of_windows_repeats_its_clips() -> None:
    clips = pd.DataFrame({"id": ["a", "b"], "label": [np.eye(2)[0], np.eye(2)[1]]}, index=[7, 7])
    found = with_windows(clips, np.array([25, 10]), 10, "average")
    assert found["id"].tolist() == ["a", "a", "a", "b"]
    assert found[["begin", "end"]].to_numpy().tolist() == [[0, 10], [10, 20], [20, 25], [0, 10]]
    assert with_windows(clips, np.array([25, 10]), 10, "first")["end"].tolist() == [10, 10]


@given(st.permutations(range(6)))
def test_the_order_of_windows_does_not_matter(order: list[int]) -> None:
    rng = np.random.default_rng(0)
    windows = [
        {"id": "ab"[i % 2], "truth": i % 2, "loss": rng.random(), "probabilities": [*rng.random(3)]}
        for i in range(6)
    ]
    expected = {row["id"]: row for row in over_clips(windows)}
    found = {row["id"]: row for row in over_clips([windows[i] for i in order])}
    assert found == expected
    mean = np.mean([window["probabilities"] for window in windows[::2]], axis=0)
    np.testing.assert_allclose(found["a"]["probabilities"], mean)


def test_a_clip_with_one_window_keeps_its_numbers() -> None:
    row = {"id": "a", "truth": 1, "loss": 0.1, "probabilities": [0.1, 0.2, 0.7]}
    assert over_clips([row]) == [row]


def test_each_epoch_draws_a_window_of_each_clip() -> None:
    """The same for any number of processes, and all of them after some epochs."""
    counts = [1, 3, 2, 1, 4, 1, 2]
    first = np.cumsum([0, *counts])
    owner = np.repeat(np.arange(7), counts)
    seen = set()
    for epoch in range(30):
        shares = []
        for rank, processes in ((0, 1), (0, 2), (1, 2)):
            batches = TrainingBatches(7, 4, seed=3, rank=rank, world_size=processes)
            batches.set_epoch(epoch)
            drawn = DrawnWindows(batches, counts)
            assert len(drawn) == len(batches)
            shares.append(list(itertools.chain(*drawn)))
        alone, *others = shares
        assert sorted(owner[alone]) == list(range(7))
        assert sorted(alone) == sorted(itertools.chain(*others))
        seen |= set(alone)
    assert seen == set(range(first[-1]))


def test_training_reads_other_windows(corpus: Path, tmp_path: Path) -> None:
    """With the first windows alone, the trained head is another one."""
    heads = []
    for windows in ("average", "first"):
        words = f"""hparams/linear.yaml --data_folder {corpus} --backbone ast_tiny --max_length 50
            --epochs 1 --batch_size 8 --noprogressbar true --folds 2 --augment [] --windows
            {windows} --output_folder {tmp_path / windows}"""
        cross_validate(Experiment.from_command_line(str(TRAIN), words.split()))
        heads.append(load_bundle(tmp_path / windows / "bundle").model.head.weight)
    assert not torch.equal(*heads)
