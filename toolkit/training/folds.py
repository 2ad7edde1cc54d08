"""Cross-validation as one job: every fold trained, tested, and summed up."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
import torch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.distributed import ddp_barrier, ddp_broadcast, if_main_process
from torch.utils.data import Sampler

from toolkit.bundle import Origin, save_bundle
from toolkit.bundle.info import hash_of
from toolkit.data.balance import balanced_class_weights, balanced_clip_weights
from toolkit.data.few_shot import few_shot
from toolkit.data.manifest import Manifest
from toolkit.data.sampling import TrainingBatches, derive_seed, evaluation_batches
from toolkit.data.splits import Split, chosen_folds, selected
from toolkit.features.batch import collate
from toolkit.features.cache import FeatureCache
from toolkit.features.dataset import clip_dataset
from toolkit.features.spec import FRAMES_PER_SECOND
from toolkit.features.state_store import StateStore
from toolkit.features.windows import Windows, window_bounds, with_windows
from toolkit.results import FoldResult, RunResult, read_run, write_fold
from toolkit.task import Task, task_of
from toolkit.training.aggregate import keep, sum_up, summary
from toolkit.training.brain import ClassificationBrain, TrainingPlan
from toolkit.training.checkpoints import AtomicCheckpointer, validation_score
from toolkit.training.experiment import Experiment, say
from toolkit.training.identity import clips_of, fingerprint, identity_of
from toolkit.training.output import PREDICTIONS, OutputFolder, write_table
from toolkit.training.progress import Progress
from toolkit.training.reuse import states_of
from toolkit.training.states import Reading, States
from toolkit.training.windows import DrawnWindows


def cross_validate(experiment: Experiment) -> RunResult:
    """Train and test every wanted fold, skipping what is done.

    Raises:
        ToolkitError: anything that the user must change.
    """
    options = experiment.options
    with OutputFolder(
        experiment.output_folder,
        experiment.configuration,
        fresh=options.debug,
        overwrite=options.overwrite,
    ) as output:
        return _cross_validate(experiment, output)


def _cross_validate(experiment: Experiment, output: OutputFolder) -> RunResult:
    done = _finished(experiment, output)
    if done is not None:
        say(f"This run is finished and stays as it is; its results are in {output.path}.")
        say(summary(done))
        return done
    experiment = output.settled(experiment)
    experiment.introduce()
    manifest = experiment.manifest()
    require_same(experiment, manifest, output)
    job = Job.of(experiment, manifest, output)
    if not experiment.options.test_only:
        output.begin()
    for split in job.splits:
        Fold(job, split).run()
    job.progress.close()
    if if_main_process():
        keep(output, sum_up(experiment, manifest, output))
    ddp_barrier()
    result = read_run(output.path)
    say(summary(result))
    say(f"results in {output.path}")
    return result


def _finished(experiment: Experiment, output: OutputFolder) -> RunResult | None:
    """The result of the run if it is finished, and still the same run."""
    done = output.result()
    if done is None or experiment.options.test_only:
        return None
    wanted = chosen_folds(done.folds_of_corpus, experiment.options.folds)
    if not all(number in done.score.folds for number in wanted):
        return None
    if experiment.embedded or experiment.data_folder.exists():
        require_same(experiment, experiment.manifest(), output)
    else:
        say(f"{experiment.data_folder} is no longer there: its clips are not compared.")
    return None if output.replaces else done


def require_same(experiment: Experiment, manifest: Manifest, output: OutputFolder) -> None:
    """Refuse an output folder whose run had other clips, another backbone or another source."""
    if if_main_process():
        root = experiment.cache_folder
        backbone = fingerprint(experiment.source, experiment.options.max_length, root)
        remark = output.require(identity_of(experiment, clips_of(manifest, root), backbone))
        if remark:
            say(remark)
    output.replaces = ddp_broadcast(output.replaces)


class Parts(NamedTuple):
    """The clips of one round."""

    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Job:
    """What the folds of one run share.

    Attributes:
        experiment, manifest, output: what runs, on which corpus, and where results go.
        splits: the folds to run.
        parts: test fold -> the clips of its round.
        rows: id of a clip -> its position in the cache.
        cache: features of all clips.
        progress: shown over all folds.
        told: whether folds reuse states, as far as it was said, so that it is said once.
        stores: of states, which all folds read.
    """

    experiment: Experiment
    manifest: Manifest
    output: OutputFolder
    splits: list[Split]
    parts: dict[int, Parts]
    rows: pd.Series
    cache: FeatureCache
    progress: Progress
    told: set[bool] = dataclasses.field(default_factory=set)
    stores: dict[str, StateStore] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment, manifest: Manifest, output: OutputFolder) -> "Job":
        """Choose the folds and compute the features of their clips."""
        options = experiment.options
        splits = selected(manifest.splits, options.folds)
        limit = None
        if options.debug:
            splits, limit = splits[:1], 2 * options.batch_size
        parts = {
            split.test: Parts(
                train=_limited(training_clips(experiment, manifest, split), limit),
                valid=_limited(manifest.of_folds([split.valid]), limit),
                test=_limited(manifest.of_folds([split.test]), limit),
            )
            for split in splits
        }
        clips = manifest.clips  # all of them, few-shot or not: one cache for every run
        if options.debug:
            clips = pd.concat([clips for part in parts.values() for clips in part])
            clips = clips.drop_duplicates("id")
        rows = pd.Series(range(len(clips)), index=clips["id"])
        say(
            f"{manifest.corpus}: {len(manifest.clips)} clips, {len(manifest.classes)} classes, "
            f"{manifest.parts}; tested: "
            f"{', '.join(manifest.name_of(split.test) for split in splits)}"
        )
        cache = experiment.features(clips)
        _tell_of_longer_clips(experiment, cache)
        progress = Progress(0, options.noprogressbar)
        job = cls(experiment, manifest, output, splits, parts, rows, cache, progress)
        progress.bar.total = sum(Fold(job, split).batches for split in splits)
        return job


class Fold:
    """One round: train on some folds, choose the epoch on another fold, test on a third.

    Args:
        job: the run that it belongs to.
        split: which fold does what.
    """

    def __init__(self, job: Job, split: Split) -> None:
        self.job, self.split = job, split
        self.experiment, self.options = job.experiment, job.experiment.options
        self.folder = job.output.fold(split.test)
        self.train, self.valid, self.test = job.parts[split.test]
        self.seed = derive_seed(self.options.seed, split.test)
        self.states: States | None = None

    @property
    def task(self) -> Task:
        """Whether a clip of the corpus has exactly one class or any number."""
        return task_of(self.job.manifest)

    @property
    def batches(self) -> int:
        """The batches of this process: training and validation in every epoch, and the test."""
        size = self.options.batch_size
        tested = (self._windows(clips, self.options.windows) for clips in (self.valid, self.test))
        train, valid, test = (-(-len(part) // size) for part in (self.train, *tested))
        return self.experiment.epochs * (train + valid) + test

    def run(self) -> None:
        """Train and test unless that is done; write predictions, a bundle and `fold.json`."""
        done = self.job.output.finished_fold(self.split.test)
        if done is not None and not self.options.test_only:
            self.job.progress.update(batches=self.batches)
            log = self.job.output.log(self.split.test)
            for record in done.history:
                log(record)
            self.job.progress.line(
                f"{self.name}: finished before, {done.metric} {100 * done.score:.1f} % in the test"
            )
            return
        brain = self.brain()
        self._reuse(brain)
        if done is not None:
            brain.history.epochs = done.history
        if not self.options.test_only:
            self.fit(brain)
        predictions = brain.predict(self._share_of(self.test, brain))
        if if_main_process():
            self._keep(brain, predictions)
        brain.checkpointer.delete_checkpoints(importance_keys=[validation_score], verbosity=0)
        ddp_barrier()

    @property
    def name(self) -> str:
        """The fold that is tested, as it is called."""
        return self.job.manifest.name_of(self.split.test)

    def brain(self) -> ClassificationBrain:
        """A fresh classifier with its training, which continues from this fold's checkpoints."""
        torch.manual_seed(self.seed)
        return ClassificationBrain(
            self.experiment.model(len(self.job.manifest.classes)),
            self._plan(),
            self.experiment.run_opts(),
            AtomicCheckpointer(self.folder / "checkpoints"),
            self.job.progress,
            self.job.output.log(self.split.test),
            "training" if self.job.manifest.fixed else self.name,
        )

    def _reuse(self, brain: ClassificationBrain) -> None:
        """Read states in place of features where that is asked for and possible."""
        job = self.job
        self.states, chosen = states_of(
            self.experiment, brain.model, job.cache, job.rows, job.stores, self._read_by_the_job
        )
        if self.states is not None:
            brain.read(self.states.part)
        reuses = self.states is not None
        if chosen and reuses not in job.told:
            job.told.add(reuses)
            job.progress.line(chosen)

    def _read_by_the_job(self, states: States) -> Iterator[tuple[pd.DataFrame, Reading]]:
        """All windows that this fold and the others read, and how."""
        for train, valid, test in self.job.parts.values():
            if not self.options.test_only:
                yield self._windows(train, self.options.windows), states.training
                yield self._windows(valid, self.options.windows), states.evaluation
            yield self._windows(test, self.options.windows), states.evaluation

    def _plan(self) -> TrainingPlan:
        """How to train this fold; class weights come from its training clips."""
        weights = None
        if self.options.class_weights == "balanced":
            weights = balanced_class_weights(self.train["label"], len(self.job.manifest.classes))
        return self.experiment.plan(self.seed, self.task, weights)

    def fit(self, brain: ClassificationBrain) -> None:
        """Train for all epochs, and validate after each."""
        weights = None
        if self.options.balanced_sampling:
            weights = balanced_clip_weights(self.train["label"], len(self.job.manifest.classes))
        batches = TrainingBatches(
            len(self.train),
            self.options.batch_size,
            self.seed,
            brain.rank,
            brain.world_size,
            weights,
            self._lengths(self._windows(self.train, "first")),
        )
        windows = self._windows(self.train, self.options.windows)
        counts = windows["id"].value_counts().loc[self.train["id"]].tolist()
        views = 1 if self.states is None else max(self.states.training.views, 1)
        brain.train_on(
            self._loader(windows, DrawnWindows(batches, counts, views), training=True),
            batches,
            self._share_of(self.valid, brain),
        )

    def _windows(self, clips: pd.DataFrame, windows: Windows) -> pd.DataFrame:
        """The windows of some clips; a clip that is not longer than the backbone reads has one."""
        rows = self.job.cache.lengths[self.job.rows[clips["id"]].to_numpy()]
        return with_windows(clips, rows, self.experiment.spec.rows, windows)

    def _lengths(self, windows: pd.DataFrame) -> list[int] | None:
        """The rows of each window; None if the backbone pads all clips to one length."""
        if not self.experiment.spec.variable:
            return None
        lengths: list[int] = (windows["end"] - windows["begin"]).tolist()
        return lengths

    def _share_of(self, clips: pd.DataFrame, brain: ClassificationBrain) -> SaveableDataLoader:
        return self.evaluation_loader(clips, brain.rank, brain.world_size)

    def _loader(
        self,
        windows: pd.DataFrame,
        batches: Sampler[list[int]] | list[list[int]],
        training: bool = False,
    ) -> SaveableDataLoader:
        """Batches of features, or of states where the brain reads these."""
        workers, states = self.options.num_workers, self.states
        if states is None:
            dataset = clip_dataset(windows, self.job.rows, self.job.cache)
            put_together = collate(self.experiment.spec)
        else:
            reading = states.training if training else states.evaluation
            dataset, put_together = states.dataset(windows, reading), states.collate
        return SaveableDataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=put_together,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory="cuda" in self.experiment.device,
        )

    def evaluation_loader(
        self,
        clips: pd.DataFrame,
        rank: int = 0,
        world_size: int = 1,
    ) -> SaveableDataLoader:
        """Batches of the windows that belong to one process.

        Args:
            clips: their clips.
            rank, world_size: this process, and the number of processes.
        """
        table = self._windows(clips, self.options.windows)
        share = evaluation_batches(
            len(table), self.options.batch_size, rank, world_size, self._lengths(table)
        )
        return self._loader(table, share)

    def _keep(self, brain: ClassificationBrain, predictions: pd.DataFrame) -> None:
        classes = self.job.manifest.classes
        predictions["fold"] = self.split.test
        history = brain.history.epochs
        best = history[brain.best_epoch - 1]
        found = self.task.evaluate(predictions, len(classes))
        write_table(self.folder / PREDICTIONS, predictions, classes)
        result = FoldResult(
            test_fold=self.split.test,
            valid_fold=self.split.valid,
            train_folds=list(self.split.train),
            metric=self.task.metric,
            score=found.score,
            valid_score=best.valid_score,
            best_epoch=brain.best_epoch,
            metrics=found.metrics,
            per_class=found.per_class,
            confusion=found.confusion,
            parameters=brain.model.count(),
            peak_memory_bytes=brain.peak_memory(),
            training_clips=len(self.train),
            history=history,
            predictions=hash_of((self.folder / PREDICTIONS).read_bytes()),
            identity=self.job.output.identity_digest,
            processes=brain.world_size,
        )
        origin = Origin(
            recipe=self.options.recipe,
            corpus=self.job.manifest.corpus,
            seed=self.options.seed,
            test_fold=result.test_fold,
            metric=result.metric,
            valid_score=result.valid_score,
            best_epoch=result.best_epoch,
        )
        save_bundle(
            self.folder / "bundle",
            brain.model,
            classes,
            self.task,
            pipeline=self.experiment.pipeline,
            origin=origin,
            windows=self.options.windows,
        )
        write_fold(self.folder, result)
        self.job.progress.line(
            f"{self.name}: {result.metric} {100 * result.score:.1f} % in the test, with the "
            f"weights of epoch {result.best_epoch} ({100 * result.valid_score:.1f} % in validation)"
        )


def _tell_of_longer_clips(experiment: Experiment, cache: FeatureCache) -> None:
    """Say how many clips are longer than the backbone reads, and what becomes of them."""
    rows = experiment.spec.rows
    longer = sum(len(window_bounds(int(length), rows)) > 1 for length in cache.lengths)
    if not longer:
        return
    seconds = experiment.spec.max_length / FRAMES_PER_SECOND
    if experiment.options.windows == "average":
        done = (
            "training draws one of the windows of each, and its prediction is the mean over all of "
            "them; `--windows first` reads only the beginning"
        )
    else:
        done = "only their beginning is read; `--windows average` reads all of it"
    say(f"{longer} of {len(cache)} clips are longer than the {seconds:g} s of the backbone: {done}")


def training_clips(experiment: Experiment, manifest: Manifest, split: Split) -> pd.DataFrame:
    """The clips that a fold trains on: all of its training folds, or `few_shot` of each class."""
    clips, options = manifest.of_folds(split.train), experiment.options
    if options.few_shot is None:
        return clips
    seed = derive_seed(options.seed, split.test)
    return few_shot(clips, options.few_shot, seed, manifest.classes)


def _limited(clips: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """At most `limit` clips, taken from one class after the other."""
    if limit is None or len(clips) <= limit:
        return clips
    turn = clips.groupby(clips["label"].map(str)).cumcount()
    return clips.loc[turn.sort_values(kind="stable").index[:limit]]
