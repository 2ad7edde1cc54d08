"""Cross-validation as one job: every fold trained, tested, and summed up."""

import dataclasses
import json
from typing import Any

import pandas as pd
import torch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from torch.utils.data import Sampler

from toolkit.bundle import save_bundle
from toolkit.data.cache import FeatureCache, write_atomically
from toolkit.data.manifest import Manifest
from toolkit.training.brain import ClassificationBrain
from toolkit.training.checkpoints import AtomicCheckpointer, validation_score
from toolkit.training.experiment import Experiment, say
from toolkit.training.metrics import accuracy, confusion_matrix
from toolkit.training.output import OutputFolder, write_table
from toolkit.training.progress import Progress
from toolkit.training.results import describe_result, summary, write_result
from toolkit.training.sampling import TrainingBatches, derive_seed, evaluation_batches
from toolkit.training.splits import Split, cross_validation, selected


def cross_validate(experiment: Experiment) -> dict[str, Any]:
    """Train and test every wanted fold, skipping what is done.

    Returns:
        what `result.json` holds.

    Raises:
        ToolkitError: anything that a user must mend.
    """
    debug = experiment.options.debug
    output = OutputFolder(experiment.output_folder, experiment.configuration, fresh=debug)
    done = output.result()
    if done is not None and not experiment.options.test_only:
        wanted = selected(cross_validation(done["folds_of_corpus"]), experiment.options.folds)
        if all(str(split.test) in done["accuracy"]["folds"] for split in wanted):
            say(f"This run is finished and stays as it is; its results are in {output.path}.")
            say(summary(done))
            return done
    experiment.introduce()
    manifest = experiment.manifest()
    job = Job.of(experiment, manifest, output)
    for split in job.splits:
        Fold(job, split).run()
    job.progress.close()
    if if_main_process():
        write_result(output, describe_result(experiment, manifest, output), manifest.classes)
    ddp_barrier()
    result = output.result()
    say(summary(result))
    return result


@dataclasses.dataclass(frozen=True)
class Job:
    """What the folds of one run share.

    Attributes:
        experiment, manifest, output: what runs, on what, and where it is kept.
        splits: the wanted folds.
        parts: test fold -> its training, validation and test clips.
        rows: id -> position in the cache.
        cache: features of all clips.
        progress: over all folds.
    """

    experiment: Experiment
    manifest: Manifest
    output: OutputFolder
    splits: list[Split]
    parts: dict[int, tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]
    rows: pd.Series
    cache: FeatureCache
    progress: Progress

    @classmethod
    def of(cls, experiment: Experiment, manifest: Manifest, output: OutputFolder) -> "Job":
        """Choose the folds and get the features of their clips."""
        options = experiment.options
        splits = selected(cross_validation(manifest.folds), options.folds)
        limit = None
        if options.debug:
            splits, limit = splits[:1], 2 * options.batch_size
        parts = {
            split.test: tuple(
                _limited(manifest.of_folds(folds), limit)
                for folds in (split.train, [split.valid], [split.test])
            )
            for split in splits
        }
        clips = pd.concat([clips for part in parts.values() for clips in part])
        clips = clips.drop_duplicates("id")
        rows = pd.Series(range(len(clips)), index=clips["id"])
        say(
            f"{manifest.corpus}: {len(manifest.clips)} clips, {len(manifest.classes)} classes, "
            f"{len(manifest.folds)} folds; testing fold "
            f"{', '.join(str(split.test) for split in splits)}"
        )
        cache = experiment.features(clips)
        progress = Progress(0, options.noprogressbar)
        job = cls(experiment, manifest, output, splits, parts, rows, cache, progress)
        progress.bar.total = sum(Fold(job, split).batches for split in splits)
        return job


class Fold:
    """One round: train on some folds, choose the epoch on another, test on a third.

    Args:
        job: the run it belongs to.
        split: which folds.
    """

    def __init__(self, job: Job, split: Split) -> None:
        self.job, self.split = job, split
        self.experiment, self.options = job.experiment, job.experiment.options
        self.folder = job.output.fold(split.test)
        self.train, self.valid, self.test = job.parts[split.test]
        self.seed = derive_seed(self.options.seed, split.test)

    @property
    def batches(self) -> int:
        """Batches of this process: training and validation in every epoch, and the test."""
        size = self.options.batch_size
        train, valid, test = (
            -(-len(clips) // size) for clips in (self.train, self.valid, self.test)
        )
        return self.experiment.epochs * (train + valid) + test

    def run(self) -> None:
        """Train and test, unless that is done; leave predictions, a bundle and fold.json."""
        log = self.job.output.log(self.split.test)
        done = self.job.output.finished_fold(self.split.test)
        if done is not None and not self.options.test_only:
            self.job.progress.update(batches=self.batches)
            for record in done["history"]:
                log(record)
            return
        torch.manual_seed(self.seed)
        brain = ClassificationBrain(
            self.experiment.model(len(self.job.manifest.classes)),
            self.experiment.plan(self.seed),
            self.experiment.run_opts(),
            AtomicCheckpointer(self.folder / "checkpoints"),
            self.job.progress,
            log,
            f"fold {self.split.test}",
        )
        if done is not None:
            brain.history.epochs = done["history"]
        if not self.options.test_only:
            batches = TrainingBatches(
                len(self.train), self.options.batch_size, self.seed, brain.rank, brain.world_size
            )
            brain.train_on(
                self._loader(self.train, batches),
                batches,
                self._evaluation_loader(self.valid, brain),
            )
        predictions = brain.predict(self._evaluation_loader(self.test, brain))
        if if_main_process():
            self._keep(brain, predictions)
        brain.checkpointer.delete_checkpoints(importance_keys=[validation_score], verbosity=0)
        ddp_barrier()

    def _loader(self, clips: pd.DataFrame, batches: Sampler | list) -> SaveableDataLoader:
        pipeline, workers = self.experiment.pipeline, self.options.num_workers
        return SaveableDataLoader(
            pipeline.dataset(clips, self.job.rows, self.job.cache),
            batch_sampler=batches,
            collate_fn=pipeline.collate(self.experiment.spec),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory="cuda" in self.experiment.device,
        )

    def _evaluation_loader(
        self, clips: pd.DataFrame, brain: ClassificationBrain
    ) -> SaveableDataLoader:
        share = evaluation_batches(
            len(clips), self.options.batch_size, brain.rank, brain.world_size
        )
        return self._loader(clips, share)

    def _keep(self, brain: ClassificationBrain, predictions: pd.DataFrame) -> None:
        classes = self.job.manifest.classes
        predictions["fold"] = self.split.test
        history = brain.history.epochs
        best = history[brain.best_epoch - 1]
        matrix = confusion_matrix(
            predictions["truth"].to_numpy(), predictions["prediction"].to_numpy(), len(classes)
        )
        found = {
            "test_fold": self.split.test,
            "valid_fold": self.split.valid,
            "train_folds": self.split.train,
            "test_accuracy": accuracy(predictions),
            "valid_accuracy": best["valid_accuracy"],
            "best_epoch": brain.best_epoch,
            "confusion": matrix.tolist(),
            "parameters": dataclasses.asdict(brain.model.count()),
            "peak_memory_bytes": brain.peak_memory(),
            "history": history,
        }
        origin = {
            "recipe": self.options.recipe,
            "corpus": self.job.manifest.corpus,
            "seed": self.options.seed,
            **{key: found[key] for key in ("test_fold", "valid_accuracy", "best_epoch")},
        }
        write_table(self.folder / "predictions.csv", predictions, classes)
        save_bundle(self.folder / "bundle", brain.model, self.experiment.source, classes, origin)
        write_atomically(self.folder / "fold.json", json.dumps(found))
        self.job.progress.line(
            f"fold {self.split.test}: {100 * found['test_accuracy']:.1f} % on the test fold, "
            f"with the weights of epoch {brain.best_epoch} "
            f"({100 * best['valid_accuracy']:.1f} % on fold {self.split.valid})"
        )


def _limited(clips: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """At most `limit` clips, taken from the classes in turn."""
    if limit is None or len(clips) <= limit:
        return clips
    turn = clips.groupby("label").cumcount()
    return clips.loc[turn.sort_values(kind="stable").index[:limit]]
