"""Runs with patchout and token merging: what they train, keep, predict and recognise."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recipe import TRAIN

from toolkit.bundle import load_bundle
from toolkit.data.synthetic.corpus import write_corpus
from toolkit.errors import RunError
from toolkit.inference.predict import predict
from toolkit.training.experiment import Experiment
from toolkit.training.folds import cross_validate


def experiment(corpus: Path, out: Path, *more: str) -> Experiment:
    words = f"""hparams/linear.yaml --data_folder {corpus} --backbone ast_tiny --max_length 50
        --epochs 1 --batch_size 8 --noprogressbar true --folds 2 --output_folder {out}"""
    return Experiment.from_command_line(str(TRAIN), [*words.split(), *more])


def test_a_run_keeps_what_it_was_trained_with(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "mini", clips_per_class=5, seconds=0.5, progress=False)
    out = tmp_path / "out"
    options = ("--patchout.time", "0.4", "--merge_tokens", "3")
    first = experiment(corpus, out, *options)
    model = first.model(2)
    assert model.patchout is not None and model.patchout.patchout.time == 0.4
    cross_validate(first)
    bundle = load_bundle(out / "bundle")
    assert bundle.model.merge_tokens == 3 and bundle.model.patchout is None
    table = pd.read_csv(out / "predictions.csv").set_index("id")
    clips = first.manifest().of_folds([2]).set_index("id")
    for name, found in zip(clips.index, predict(bundle, clips["path"]), strict=True):
        expected = table.loc[name, [f"p_{label}" for label in bundle.classes]].to_numpy(float)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    for other in (("--patchout", "0.4", *options[2:]), options[:2], options[2:], ()):
        with pytest.raises(RunError, match=r"patchout|merge_tokens"):
            cross_validate(experiment(corpus, out, *other))
