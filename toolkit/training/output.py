"""The output folder of a run: who may write there, what the run was, and what it found.

results/<recipe>/<method>/<seed>/
    hyperparams.yaml  identity.json  env.log  log.txt  train_log.txt  tensorboard/fold-<k>/
    fold-<k>/  checkpoints/  predictions.csv  bundle/  fold.json
    predictions.csv  confusion.png  bundle/
    result.json       written last: it exists if and only if the run is finished
"""

import logging.config
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import distributions, version
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
from filelock import FileLock, Timeout
from speechbrain.utils.distributed import ddp_barrier, ddp_broadcast, if_main_process
from speechbrain.utils.train_logger import FileTrainLogger, TensorboardLogger

from toolkit import places
from toolkit.bundle import BUNDLE
from toolkit.bundle.info import hash_of
from toolkit.config import Configuration
from toolkit.errors import RunError
from toolkit.files import write_atomically
from toolkit.own_folders import Kind, claimed, empty, remove_files, require_replaceable
from toolkit.results import (
    FOLD_FILE,
    RUN_FILE,
    EpochRecord,
    FoldResult,
    RunResult,
    Statistics,
    read_fold,
    read_run,
)
from toolkit.training import identity
from toolkit.training.experiment import Experiment
from toolkit.training.identity import Identity

PREDICTIONS = "predictions.csv"
TEST_AGAIN = f"delete {FOLD_FILE} beside it and start the run again, which tests this fold again"

OF_RUN_OR_FOLD = (
    "predictions.csv", "bundle/bundle.json", "bundle/weights.safetensors",
    ".bundle.*/*",  # what a killed process left of it
)  # fmt: skip
RUN = Kind(
    "run",
    holds=(
        "hyperparams.yaml", "identity.json", "env.log", "log.txt", "train_log.txt", "result.json",
        "confusion.png", ".lock", "tensorboard/*", *OF_RUN_OR_FOLD,
        "fold-*/fold.json", "fold-*/checkpoints/*", *(f"fold-*/{name}" for name in OF_RUN_OR_FOLD),
    ),
    known_by=(("hyperparams.yaml",),),
    remedy="choose another folder with `--output_folder`",
)  # fmt: skip

LOCK = ".lock"

KEPT = (LOCK, "log.txt")
"""What stays when a run is replaced: this process has both open."""


class OutputFolder:
    """The folder of one run: a context, which holds it for this process.

    If the block fails before `begin`, nothing of what was made for it stays, so that the corrected
    command finds the place as it was.

    Args:
        path: the folder; created if it does not exist.
        configuration: of the run.
        fresh: empty an existing folder first (debug runs).
        overwrite: replace another run, or a damaged one, instead of refusing it.

    Attributes:
        replaces: whether the folder holds such a run, which `begin` removes.

    Raises:
        PlaceError: it holds files that no run wrote.
        RunError: it holds a run of another configuration, or another process writes there.
    """

    def __init__(
        self,
        path: Path,
        configuration: Configuration,
        fresh: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path, self._configuration = path, configuration
        self._continued: dict[str, Any] | None = None
        self._fresh, self._overwrite, self._begun = fresh, overwrite, False
        self._identity: Identity | None = None
        self.replaces = False

    def __enter__(self) -> Self:
        with ExitStack() as held:
            if if_main_process():
                held.enter_context(claimed(self.path, RUN))
                self._require_own_bundles()
                held.enter_context(self._locked())
                if self._fresh:
                    empty(self.path, RUN, keep=(LOCK,))
                with self._replacing():
                    found = identity.recorded(self.path)
                    changed = (
                        [] if found is None else found.changed_configuration(self._configuration)
                    )
                    identity.refuse_changes(self.path, "another configuration", changed)
                    self._continued = None if found is None else found.configuration
            self.replaces = ddp_broadcast(self.replaces)
            held.enter_context(self._logged())
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.__exit__(kind, error, trace)

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        """Let another run, or a damaged one, be replaced if that was asked for."""
        try:
            yield
        except RunError:
            if not self._overwrite:
                raise
            self.replaces = True

    def settled(self, experiment: Experiment) -> Experiment:
        """The experiment with its precision chosen, which a run that continues keeps; the folder
        will record it."""
        settled = experiment.settled(self._continued)
        self._configuration = settled.configuration
        return settled

    def require(self, now: Identity) -> str | None:
        """Refuse a folder whose run had other clips, another backbone or another source, and
        finished folds that are damaged; called by the main process.

        Returns:
            a remark for the user, if the folder does not say what its run had.

        Raises:
            RunError: the message lists what has changed, or names what is damaged.
        """
        self._identity = now
        remark = None
        if self.replaces:
            return remark
        with self._replacing():
            found = identity.recorded(self.path)
            if found is not None and found.content:
                changed = found.changed_content(now)
                identity.refuse_changes(self.path, "other clips, backbone or source", changed)
            elif found is not None:
                remark = (
                    f"{self.path} is of a version that did not keep which clips, backbone and "
                    "source a run had: they are taken to be as they were."
                )
            self._check_folds()
        return remark

    @property
    def identity_digest(self) -> str | None:
        """Hash of the identity that `require` was given."""
        return None if self._identity is None else self._identity.digest

    def begin(self) -> None:
        """Note what is about to train: configuration, environment, an empty log of epochs.

        A run that trains nothing does not call this, so that the files stay as the training left
        them.
        """
        self._begun = True
        if if_main_process():
            if self.replaces:
                empty(self.path, RUN, keep=KEPT)
            if self._identity is not None:
                self._identity.write(self.path)
            write_atomically(self.path / identity.CONFIGURATION, self._configuration.text)
            write_atomically(self.path / "env.log", _environment())
            remove_files(self.path, "train_log.txt")
        ddp_barrier()
        self.replaces = False

    def fold(self, number: int) -> Path:
        """The folder of one fold."""
        return self.path / f"fold-{number}"

    def finished_fold(self, number: int) -> FoldResult | None:
        """What a finished fold found, or None.

        Raises:
            RunError: the file is damaged, or the fold is of another run.
        """
        folder = self.fold(number)
        if self.replaces or not (folder / FOLD_FILE).is_file():
            return None
        found = read_fold(folder)
        if self._identity is not None and found.identity not in (None, self._identity.digest):
            raise RunError(
                f"{folder} was made with other clips, another backbone or another source than "
                f"this run: {identity.REMEDY}"
            )
        return found

    def predictions(self, number: int) -> pd.DataFrame:
        """The predictions of a finished fold, as it wrote them.

        Raises:
            RunError: they are missing, or not what was written.
        """
        file, fold = self.fold(number) / PREDICTIONS, self.finished_fold(number)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise RunError(f"{file} cannot be read ({error.strerror}); {TEST_AGAIN}") from None
        if fold is not None and fold.predictions not in (None, hash_of(content)):
            raise RunError(f"{file} is damaged (it is not what was saved); {TEST_AGAIN}")
        try:
            return pd.read_csv(BytesIO(content), dtype=str, keep_default_na=False)
        except ValueError as error:
            raise RunError(f"{file} is damaged ({error}); {TEST_AGAIN}") from None

    def _check_folds(self) -> None:
        """Refuse finished folds that are damaged or of another run."""
        for file in sorted(self.path.glob(f"fold-*/{FOLD_FILE}")):
            number = file.parent.name.removeprefix("fold-")
            if number.isdigit() and self.finished_fold(int(number)) is not None:
                self.predictions(int(number))

    def result(self) -> RunResult | None:
        """The result of a finished run, or None.

        Raises:
            RunError: the file is damaged.
        """
        if not self.replaces and (self.path / RUN_FILE).is_file():
            with self._replacing():
                return read_run(self.path)
        return None

    def log(self, fold: int) -> "EpochLog":
        """The log of the epochs of a fold."""
        return EpochLog(self.path, fold)

    def _require_own_bundles(self) -> None:
        for bundle in (self.path / "bundle", *self.path.glob("fold-*/bundle")):
            require_replaceable(bundle, BUNDLE)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder; a lock file of a run that does not begin is removed again."""
        file = self.path / LOCK
        made, lock = not file.exists(), FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"another process is writing to {self.path}; wait for it, or choose another "
                "folder with `--output_folder`"
            ) from None
        try:
            yield
        except BaseException:
            if made and not self._begun:
                remove_files(self.path, LOCK)
            raise
        finally:
            lock.release()

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """Log to `log.txt`; that of a run that does not begin is removed again."""
        if not if_main_process():
            _log_to(None)
            yield
            return
        file = self.path / "log.txt"
        made = not file.exists()
        _log_to(file)
        try:
            yield
        except BaseException:
            if made and not self._begun:
                remove_files(self.path, file.name)
            raise
        finally:
            _log_to(None)


class EpochLog:
    """Logs the epochs of a fold to train_log.txt and to TensorBoard.

    Every process must call it: SpeechBrain's loggers write on rank 0 while the others wait.
    """

    def __init__(self, path: Path, fold: int) -> None:
        self.fold = fold
        self.text = FileTrainLogger(path / "train_log.txt", precision=4)
        events = path / "tensorboard" / f"fold-{fold}"
        if if_main_process():  # a resumed run logs its earlier epochs again
            remove_files(events, "events.out.tfevents.*")
        self.board = TensorboardLogger(str(events))

    def __call__(self, record: EpochRecord) -> None:
        """Log the record of one epoch."""
        meta = {"fold": self.fold, "epoch": record.epoch, "lr": record.lr}
        auxiliary = {f"loss_{name}": value for name, value in record.auxiliary.items()}
        train = {"loss": record.train_loss, **auxiliary}
        valid = {"loss": record.valid_loss, record.metric: record.valid_score}
        self.text.log_stats(meta, train, valid, verbose=False)
        self.board.log_stats(meta, train, {**valid, **_scalars(record.statistics)})
        if self.board.writer is not None:
            self.board.writer.flush()


def _scalars(statistics: Statistics) -> dict[str, float]:
    """Statistics with one scalar per item of a list, such as the load of each expert."""
    flat: dict[str, float] = {}
    for name, value in statistics.items():
        if isinstance(value, list):
            flat.update({f"{name}_{i}": item for i, item in enumerate(value)})
        else:
            flat[name] = value
    return flat


def package_versions() -> dict[str, str]:
    """The versions of the packages that results depend on."""
    names = ("torch", "torchaudio", "transformers", "speechbrain", "einops", "numpy")
    return {name: version(name) for name in names}


def write_table(path: Path, predictions: pd.DataFrame, classes: list[str]) -> None:
    """Write predictions.csv: id, fold, truth, prediction, and a probability for each class.

    Truth and prediction are class names, joined by semicolons where a clip may have several.
    """
    probabilities = pd.DataFrame(
        predictions["probabilities"].tolist(), columns=[f"p_{name}" for name in classes]
    )
    table = predictions[["id", "fold"]].assign(
        truth=[_named(label, classes) for label in predictions["truth"]],
        prediction=[_named(label, classes) for label in predictions["prediction"]],
    )
    text = pd.concat([table, probabilities], axis=1).to_csv(index=False)
    write_atomically(path, text)


def _named(label: int | tuple[int, ...], classes: list[str]) -> str:
    return ";".join(classes[i] for i in label) if isinstance(label, tuple) else classes[label]


def _log_to(file: Path | None) -> None:
    """Send warnings to the console and everything to the log.txt of the run."""
    handlers: dict[str, Any] = {
        "console": {
            "class": "speechbrain.utils.logger.TqdmCompatibleStreamHandler",
            "level": "WARNING",
            "formatter": "short",
        }
    }
    if file is not None:
        handlers["file"] = {
            "class": "logging.FileHandler", "filename": str(file), "formatter": "long",
            "encoding": "utf-8",
        }  # fmt: skip
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "short": {"format": "%(levelname)s: %(message)s"},
                "long": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"},
            },
            "handlers": handlers,
            "root": {"level": "INFO", "handlers": list(handlers)},
        }
    )


def _environment() -> str:
    installed = sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()})
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"python: {sys.version}",
        f"platform: {platform.platform()}",
        f"commit: {commit()}",
        "packages:",
        *installed,
    ]
    return "\n".join(lines) + "\n"


def commit() -> str | None:
    """The commit of this checkout, with `-dirty` if files differ; None outside a checkout."""
    if places.installed():  # the environment may lie in a checkout of something else
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        run = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
