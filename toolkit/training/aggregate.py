"""The end of a run: its folds summed up, and what is left in its folder."""

import platform
import shutil

import numpy as np
import numpy.typing as npt
import pandas as pd

from toolkit import __version__
from toolkit.bundle import BUNDLE
from toolkit.data.manifest import Manifest
from toolkit.errors import RunError
from toolkit.files import errors_name, new_folder, write_atomically
from toolkit.metrics import Spread, per_class_accuracy
from toolkit.results import FoldResult, RunResult, RunScore, write_run
from toolkit.task import task_of
from toolkit.training.confusion import draw_confusion
from toolkit.training.experiment import Experiment
from toolkit.training.output import PREDICTIONS, TEST_AGAIN, OutputFolder, commit, package_versions
from toolkit.training.volatile import VOLATILE

HARDEST = 3
"""How many classes with low scores the summary names."""


def sum_up(experiment: Experiment, manifest: Manifest, output: OutputFolder) -> RunResult:
    """Sum up the finished folds of a run; at least one must be finished."""
    candidates = {split.test: output.finished_fold(split.test) for split in manifest.splits}
    folds = {number: fold for number, fold in candidates.items() if fold is not None}
    results = list(folds.values())
    confusion, per_class = _classes(results)
    spread = Spread.of([fold.score for fold in results])
    epochs = [record for fold in results for record in fold.history]
    configuration = experiment.configuration
    return RunResult(
        recipe=experiment.options.recipe,
        hparams=configuration.name,
        method=experiment.method.registered_name,
        corpus=manifest.corpus,
        embedded=experiment.embedded,
        classes=manifest.classes,
        folds_of_corpus=[split.test for split in manifest.splits],
        metric=task_of(manifest).metric,
        metrics={
            name: Spread.of([fold.metrics[name] for fold in results]) for name in results[0].metrics
        },
        score=RunScore(
            folds={number: fold.score for number, fold in folds.items()},
            mean=spread.mean,
            std=spread.std,
            per_class=per_class,
        ),
        valid_score={number: fold.valid_score for number, fold in folds.items()},
        best_epoch={number: fold.best_epoch for number, fold in folds.items()},
        confusion=None if confusion is None else confusion.tolist(),
        parameters=results[0].parameters,
        seconds_per_epoch=float(np.mean([record.train_seconds for record in epochs])),
        peak_memory_bytes=max(fold.peak_memory_bytes for fold in results),
        seed=experiment.options.seed,
        device=experiment.device,
        peft=experiment.method.named(),
        backbone=experiment.source.named(),
        configuration=configuration.flat,
        configuration_hash=configuration.digest(ignore=VOLATILE),
        toolkit=__version__,
        commit=commit(),
        python=platform.python_version(),
        packages=package_versions(),
        processes={number: fold.processes for number, fold in folds.items()},
    )


def _classes(
    folds: list[FoldResult],
) -> tuple[npt.NDArray[np.int_] | None, list[float | None]]:
    """The confusion matrix over all folds, and the score of each class.

    Without confusion matrices, the score of a class is its mean over the folds that have it.
    """
    matrices = [fold.confusion for fold in folds if fold.confusion is not None]
    if matrices:
        confusion = np.sum(matrices, axis=0)
        return confusion, per_class_accuracy(confusion)
    scores = np.array([fold.per_class for fold in folds], dtype=float)
    counts = np.isfinite(scores).sum(axis=0)
    means = np.nansum(scores, axis=0) / np.maximum(counts, 1)
    return None, [float(mean) if n else None for mean, n in zip(means, counts, strict=True)]


def keep(output: OutputFolder, result: RunResult) -> None:
    """Write the run's table, picture and bundle, and `result.json` last.

    The bundle is that of the fold with the best validation score: test folds choose nothing.
    """
    numbers = list(result.score.folds)
    tables = pd.concat([output.predictions(number) for number in numbers])
    write_atomically(output.path / PREDICTIONS, tables.to_csv(index=False))
    if result.confusion is not None:
        picture = draw_confusion(np.array(result.confusion), result.classes)
        with errors_name(output.path / "confusion.png"):
            picture.savefig(output.path / "confusion.png")
    best = max(numbers, key=result.valid_score.__getitem__)
    source = output.fold(best) / "bundle"
    if not source.is_dir():
        raise RunError(f"{source} is missing; {TEST_AGAIN}")
    with new_folder(output.path / "bundle", BUNDLE) as made:
        shutil.copytree(source, made, dirs_exist_ok=True)
    write_run(output.path, result)


def summary(result: RunResult) -> str:
    """A result in a few lines."""
    score = result.score
    folds = ", ".join(f"{100 * value:.1f}" for value in score.folds.values())
    number = f"{len(score.folds)} fold{'s' if len(score.folds) > 1 else ''}"
    worst = sorted(
        (value, name)
        for name, value in zip(result.classes, score.per_class, strict=True)
        if value is not None
    )[:HARDEST]
    return (
        f"{result.method} on {result.corpus}: {score.spread.percent()} test {result.metric} over "
        f"{number} ({folds}); the epoch of each was chosen on its validation fold\n"
        f"hardest classes: {', '.join(f'{name} {100 * value:.0f} %' for value, name in worst)}\n"
        f"{result.seconds_per_epoch:.1f} s per epoch, "
        f"{result.peak_memory_bytes / 2**20:.0f} MiB of memory at the peak"
    )
