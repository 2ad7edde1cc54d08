"""Frozen computation done once: the same predictions, computed once, shared, resumed, refused."""

import functools
import gc
import importlib
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from recipe import SMALL, TRAIN

from toolkit.data.augment import SpecAugment
from toolkit.data.synthetic.corpus import write_corpus
from toolkit.errors import ConfigError, RunError
from toolkit.features.cache_folder import STATES, caches
from toolkit.registry import BACKBONES
from toolkit.results import RunResult
from toolkit.reuse import FrozenPart, PooledPart
from toolkit.training.brain import ClassificationBrain
from toolkit.training.experiment import Experiment
from toolkit.training.folds import cross_validate
from toolkit.training.states import of_plugins

WIDE = ("soft_moa", "lora", "lst")
"""Configurations that are run with `tools/test --all`; toolkit.testing compares all methods."""
CONFIGURATIONS = {
    "linear": ["hparams/linear.yaml"],
    "linear, weighted": ["hparams/linear.yaml", "--pooling", "weighted"],
    "adapter": ["hparams/adapter.yaml", "--peft.layers", "last 1"],
    "soft_moa": ["hparams/softmoa.yaml", "--peft.layers", "last 2"],
    "lora": ["hparams/lora.yaml", "--peft.layers", "last 2", "--peft.dropout", "0.1"],
    "lst": ["hparams/lst.yaml"],
}
PLAIN = ["--augment", "[]"]
VIEWS = ["--reuse", "3"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty clips of 0.6 s."""
    folder = tmp_path_factory.mktemp("corpus") / "mini"
    return write_corpus(folder, clips_per_class=5, seconds=0.6, progress=False)


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Callable[..., RunResult]:
    """Run the recipe in this process; its output folder is named first."""

    def started(output: str, *words: object, folds: str = "1") -> RunResult:
        hparams, *others = map(str, words)
        experiment = Experiment.from_command_line(
            str(TRAIN),
            [hparams, "--data_folder", str(corpus), *SMALL, "--folds", folds,
             "--output_folder", str(tmp_path / output), *others],
        )  # fmt: skip
        return cross_validate(experiment)

    return started


def probabilities(folder: Path) -> np.ndarray:
    """Of all test clips [N, C]."""
    table = pd.read_csv(folder / "predictions.csv").sort_values("id")
    return table.filter(like="p_").to_numpy()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips each batch had whose states were computed, from now on."""
    counts: list[int] = []
    for kind in (FrozenPart, PooledPart):
        original = kind.states

        def counted(self: Any, features: Any, lengths: Any = None, _of: Any = original) -> Any:
            counts.append(len(features))
            return _of(self, features, lengths)

        monkeypatch.setattr(kind, "states", counted)
    return counts


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.wide] * (n in WIDE)) for n in CONFIGURATIONS]
)
def test_reuse_finds_the_same(
    name: str, run: Callable[..., RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*CONFIGURATIONS[name], *PLAIN, "--epochs", "1"]
    without = run("off", *words, "--reuse", "off")
    assert "reuse:" not in capsys.readouterr().out
    found = run("auto", *words)
    assert "reuse: on, because " in capsys.readouterr().out
    np.testing.assert_allclose(
        probabilities(tmp_path / "auto"), probabilities(tmp_path / "off"), atol=1e-5
    )
    assert found.parameters == without.parameters


def test_clips_of_many_lengths(run: Callable[..., RunResult], tmp_path: Path) -> None:
    """A backbone that reads samples masks padding; its clips have windows here."""
    hubert = BACKBONES.get("hubert")
    config = hubert.config_class(**hubert.tiny_config, **hubert.options)
    hubert.model_class(config).save_pretrained(tmp_path / "hubert")
    words = ["hparams/lora.yaml", *PLAIN, "--backbone", tmp_path / "hubert", "--max_length", "45"]
    words += ["--peft.layers", "last 1", "--epochs", "1"]
    run("auto", *words)
    run("off", *words, "--reuse", "off")
    np.testing.assert_allclose(
        probabilities(tmp_path / "auto"), probabilities(tmp_path / "off"), atol=1e-5
    )


@pytest.mark.wide
def test_each_precision_has_states_of_its_own(
    run: Callable[..., RunResult], tmp_path: Path, cache_folder: Path
) -> None:
    words = [*CONFIGURATIONS["adapter"], *PLAIN, "--epochs", "1", "--num_workers", "1"]
    words += ["--precision", "bf16"]
    run("auto", *words)
    assert sum(cache.kind == STATES for cache in caches(cache_folder)) == 2
    run("off", *words, "--reuse", "off")
    np.testing.assert_allclose(
        probabilities(tmp_path / "auto"), probabilities(tmp_path / "off"), atol=1e-2
    )


def test_states_are_computed_once_and_shared(
    run: Callable[..., RunResult], computed: list[int], cache_folder: Path
) -> None:
    words = ["hparams/linear.yaml", *PLAIN]
    run("first", *words, folds="1,2")
    first = sum(computed)
    assert 50 <= first <= 56  # all clips, and samples to look at
    run("other", *words, "--lr", "0.1", "--seed", "3", folds="1,2")
    assert sum(computed) - first <= 6
    gc.collect()
    (store,) = (cache for cache in caches(cache_folder) if cache.kind == STATES)
    assert not store.in_use()
    assert store.size < 50 * 4 * 192 + 20_000  # one vector per clip


def test_few_shot_computes_few(run: Callable[..., RunResult], computed: list[int]) -> None:
    run("out", "hparams/linear.yaml", *PLAIN, "--few_shot", "1")
    assert sum(computed) <= 10 + 20 + 3


def test_long_clips_have_states_of_all_windows(
    run: Callable[..., RunResult], tmp_path: Path
) -> None:
    words = ["hparams/linear.yaml", *PLAIN, "--max_length", "25"]
    run("auto", *words)
    run("off", *words, "--reuse", "off")
    np.testing.assert_allclose(
        probabilities(tmp_path / "auto"), probabilities(tmp_path / "off"), atol=1e-5
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["hparams/linear.yaml"], "SpecAugment changes the clips in every epoch"),
        (["hparams/lora.yaml", *PLAIN], "first block trains"),
        (["hparams/full.yaml", *PLAIN], "trains stock modules as a whole"),
        (["hparams/linear.yaml", *PLAIN, "--cache_gigabytes", "0.00001"], "--cache_gigabytes"),
    ],
)
def test_why_nothing_is_reused_is_said(
    words: list[str],
    reason: str,
    run: Callable[..., RunResult],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("out", *words, "--debug")
    told = capsys.readouterr().out
    assert "reuse: off, because " in told and reason in told


# Views


def test_views_are_drawn_and_kept(
    run: Callable[..., RunResult], computed: list[int], tmp_path: Path
) -> None:
    words = ["hparams/linear.yaml", *VIEWS, "--epochs", "3"]
    run("views", *words)
    first = sum(computed)
    assert first >= 3 * 30 + 20  # three views of training clips, one of the others
    run("again", *words)
    assert sum(computed) - first <= 3
    run("plain", *words, *PLAIN, "--reuse", "auto")
    found, again, plain = (probabilities(tmp_path / n) for n in ("views", "again", "plain"))
    np.testing.assert_array_equal(found, again)
    assert np.abs(found - plain).max() > 1e-4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--augment", "[]"], "'augment' is empty"),
        (["--augment", "[!new:toolkit.data.augment.Mixup {alpha: 0.5}]"], "Mixup"),
        (["--augment", "[!new:toolkit.data.augment.Mixup {probability: 0.1}]"], "Mixup"),
        (["--peft.name", "full"], "reuse: off"),
        (["--cache_gigabytes", "0.00001"], "--cache_gigabytes"),
    ],
)
def test_views_that_cannot_be_are_refused(
    words: list[str], says: str, run: Callable[..., RunResult]
) -> None:
    with pytest.raises(ConfigError, match=says):
        run("out", "hparams/linear.yaml", *VIEWS, *words)


@pytest.mark.parametrize("value", ["0", "-1", "on", "2.5", "[]"])
def test_other_values_are_refused(value: str, run: Callable[..., RunResult]) -> None:
    with pytest.raises(ConfigError, match="reuse"):
        run("out", "hparams/linear.yaml", "--reuse", value)


def test_states_know_the_code_of_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "louder_twice.py"
    file.write_text("def louder(features, targets, generator):\n    return 2 * features, targets\n")
    monkeypatch.syspath_prepend(tmp_path)
    parts = SpecAugment(), importlib.import_module("louder_twice").louder
    before = of_plugins(*parts)
    file.write_text(file.read_text().replace("2", "3"))
    assert len(before) == 1
    assert of_plugins(*parts) != before


# Identity, interruption, several processes


def test_a_run_may_be_continued_with_and_without(
    run: Callable[..., RunResult], tmp_path: Path
) -> None:
    words = ["hparams/linear.yaml", *PLAIN]
    run("out", *words, "--reuse", "off")
    run("out", *words, "--cache_gigabytes", "5", folds="1,2")
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 20


def test_views_make_another_run(run: Callable[..., RunResult]) -> None:
    run("out", "hparams/linear.yaml")
    with pytest.raises(RunError, match="reuse: off there, 3 now"):
        run("out", "hparams/linear.yaml", *VIEWS)


@pytest.mark.parametrize("words", [pytest.param(PLAIN, marks=pytest.mark.wide), VIEWS])
def test_an_interrupted_run_ends_the_same(
    words: list[str],
    run: Callable[..., RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*CONFIGURATIONS["adapter"], *words, "--ckpt_interval_minutes", "0.00001"]
    run("whole", *words)
    steps, original = [0], ClassificationBrain.fit_batch

    def stopping(self: Any, batch: Any) -> Any:
        steps[0] += 1
        if steps[0] == 6:
            raise KeyboardInterrupt
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationBrain, "fit_batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            run("cut", *words)
    run("cut", *words)
    np.testing.assert_allclose(
        probabilities(tmp_path / "cut"), probabilities(tmp_path / "whole"), atol=1e-6
    )


def _process(run: Callable[..., RunResult], words: list[str], port: int, rank: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    run("two", *words)


def test_two_processes_find_what_one_finds(run: Callable[..., RunResult], tmp_path: Path) -> None:
    words = [*CONFIGURATIONS["adapter"], *VIEWS]
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = functools.partial(_process, run, words, port)
    processes = [context.Process(target=job, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    run("one", *words)
    np.testing.assert_allclose(
        probabilities(tmp_path / "two"), probabilities(tmp_path / "one"), atol=1e-5
    )
