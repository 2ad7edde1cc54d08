"""An experiment: the objects that a configuration describes, checked before data is read."""

import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_barrier, ddp_broadcast, if_main_process
from torch import Tensor

from toolkit import backbones, config, places, plugins
from toolkit.backbones.base import BackboneSource
from toolkit.config import CommandLine, Configuration
from toolkit.data.augment import SpecAugment
from toolkit.data.manifest import Corpus, Manifest, copied, refuse, untrained
from toolkit.device import require_device
from toolkit.errors import ConfigError, RunError, did_you_mean
from toolkit.features.cache import FeatureCache, content_hashes, default_cache_folder
from toolkit.features.cache_folder import GIGABYTE, make_room
from toolkit.features.pipeline import Pipeline, pipeline_for
from toolkit.features.spec import FeatureSpec
from toolkit.features.windows import Windows
from toolkit.fewer_tokens.patchout import Patchout
from toolkit.model import AudioClassifier, Pooling
from toolkit.peft.base import PeftMethod
from toolkit.program import Program
from toolkit.registry import CORPORA, PEFT, PIPELINES
from toolkit.settings import Settings, setting
from toolkit.task import Task
from toolkit.training import precision
from toolkit.training.brain import TrainingPlan
from toolkit.training.trial import try_augmentations, try_optimizer, try_views

logger = logging.getLogger(__name__)

RECIPE = "hparams/recipe.yaml"
EMBEDDED = "hparams/embedded.yaml"
OTHER_ENDED = "by peer"
"""In what gloo raises in a process that waits for one that is gone."""
OBJECTS = ("optimizer", "augment", "peft", "backbone", "corpus", "pipeline")
"""Keys of a configuration besides its options."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a recipe runs.

    Attributes:
        configuration: as loaded; `hparams/base.yaml` of the recipe describes its keys.
        options: the keys that are plain values, checked.
        command: what starts it, for messages.
        method, source, corpus: the registered parts that it names.
        chosen_pipeline: the pipeline that it names; None: the one that the backbone asks for.
    """

    configuration: Configuration
    options: "Options"
    command: str
    method: PeftMethod
    source: BackboneSource
    corpus: Corpus
    chosen_pipeline: Pipeline | None

    @classmethod
    def from_command_line(cls, recipe_file: str, arguments: Sequence[str]) -> "Experiment":
        """Read a recipe's command line, and join the other processes of the job if there are any.

        Args:
            recipe_file: the recipe's train.py.
            arguments: what follows it on the command line.

        Raises:
            ConfigError, UnknownName: anything wrong with the configuration.
        """
        return cls.of(recipe_file, config.parse_command_line(arguments))

    @classmethod
    def of(cls, recipe_file: str, command: CommandLine) -> "Experiment":
        """Make the experiment of a command line that is already parsed."""
        recipe = Path(recipe_file).resolve().parent
        folders: list[str | Path] = [
            *command.plugins,
            *plugins.of_project(recipe, Path(command.hparams)),
        ]
        if if_main_process():
            plugins.discover_and_report(folders)
        else:
            plugins.discover(folders)
        loaded, options = configured(command, recipe)
        experiment = cls.described(loaded, options, _command(Path(recipe_file), command))
        try_optimizer(loaded.values["optimizer"], options.lr, experiment.device)
        _join_processes(experiment.device)
        return experiment

    @classmethod
    def described(
        cls, configuration: Configuration, options: "Options", command: str
    ) -> "Experiment":
        """Make the experiment that a loaded configuration describes."""
        values = configuration.values
        pipeline = values["pipeline"]
        return cls(
            configuration=configuration,
            options=options,
            command=command,
            method=PEFT.create(values["peft"]),
            source=backbones.create(values["backbone"]),
            corpus=CORPORA.create(values["corpus"]),
            chosen_pipeline=None if pipeline is None else PIPELINES.create(pipeline),
        )

    @property
    def embedded(self) -> bool:
        """Whether this is the demonstration, which needs no data folder."""
        return self.options.data_folder is None

    @property
    def output_folder(self) -> Path:
        """The folder of the run; a debug run has one of its own."""
        return Path(f"{self.options.output_folder}{'-debug' if self.options.debug else ''}")

    @property
    def data_folder(self) -> Path:
        """The folder of the corpus."""
        return Path(self.options.data_folder or self.cache_folder / self.corpus.registered_name)

    @property
    def epochs(self) -> int:
        """Passes over the training clips."""
        return 1 if self.options.debug else self.options.epochs

    @property
    def cache_folder(self) -> Path:
        """The folder of the features and of the synthetic corpus."""
        return Path(self.options.cache_folder or default_cache_folder())

    @functools.cached_property
    def device(self) -> str:
        """The torch device of this process."""
        return self.options.device or sb.utils.distributed.infer_device()

    def model(self, num_classes: int) -> AudioClassifier:
        """A fresh classifier: the backbone is loaded and the method is applied to it.

        Raises:
            BackboneError, ConfigError: it cannot be loaded, or the method cannot work on it.
        """
        self._check_input()
        backbone = self.source.load(self.options.max_length)
        options = self.options
        model = AudioClassifier(
            backbone, self.method, num_classes, options.pooling, merge_tokens=options.merge_tokens
        )
        model.drop_patches(options.patchout)
        return model

    def introduce(self) -> None:
        """Print what will run, after building the model once to see that it can be built.

        Raises:
            BackboneError, ConfigError: the model cannot be built.
        """
        model = self.model(num_classes=2)
        count = model.count()
        share = 100 * count.method / (count.total - count.head)
        say(
            f"{self.configuration.name}: {self.method.registered_name} on "
            f"{self.source.registered_name}, {count.method:,} of "
            f"{count.total - count.head:,} parameters trained ({share:.2f} %), and the head"
        )
        if self.embedded:
            say(
                "This is the embedded demonstration (hparams/embedded.yaml): sounds that the "
                "program makes itself, a small backbone, few epochs.\n"
                f"For the real corpus: {self.command} --data_folder PATH_TO_{self.options.recipe}"
            )

    def manifest(self) -> Manifest:
        """The table of the corpus, which rank 0 first downloads or makes if that was asked for.

        Raises:
            DataError: the corpus is missing or inconsistent.
        """
        folder = self.data_folder
        if if_main_process():
            if self.embedded:
                self.corpus.embed(folder)
            if self.options.download:
                self.corpus.download(folder)
            manifest = self.corpus.manifest(folder)
            self._look_for_copies(manifest)
            for problem in untrained(manifest):
                logger.warning("%s: %s", manifest.corpus, problem)
        ddp_barrier()
        return manifest if if_main_process() else self.corpus.manifest(folder)

    def _look_for_copies(self, manifest: Manifest) -> None:
        """Look for the same sound in two folds: refuse folds of the user, warn of official ones."""
        contents = content_hashes(self.cache_folder, sorted(set(manifest.clips["path"])))
        found = copied(manifest.clips, contents)
        if not manifest.official:
            refuse(manifest.corpus, found)
        for problem in found:
            logger.warning("%s: %s", manifest.corpus, problem)

    @functools.cached_property
    def spec(self) -> FeatureSpec:
        """The features that the backbone reads."""
        return self.source.spec(self.options.max_length)

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """What makes the rows: the configured pipeline, or the one that the backbone asks for."""
        chosen = self.chosen_pipeline
        return pipeline_for(self.spec) if chosen is None else chosen

    def _check_input(self) -> None:
        """Refuse a pipeline of another kind than the backbone reads, and SpecAugment on samples."""
        self.pipeline.require(self.spec)
        augment = self.configuration.values["augment"]
        if not self.spec.spectral and any(isinstance(a, SpecAugment) for a in augment):
            raise ConfigError(
                "SpecAugment masks spectrograms, and the backbone "
                f"'{self.source.registered_name}' reads samples: leave it out with `--augment []`"
            )
        try_augmentations(augment, self.spec)
        if isinstance(self.options.reuse, int):
            try_views(augment, self.spec)

    def features(self, clips: pd.DataFrame) -> FeatureCache:
        """Features of the clips, computed by rank 0 where they are not on disk.

        Older caches may have to go so that all stay within the limit.
        """
        if if_main_process():
            _in_use = self.pipeline.cache(clips, self.spec, self.cache_folder)
            make_room(self.cache_folder, 0, round(self.options.cache_gigabytes * GIGABYTE))
        ddp_barrier()
        return self.pipeline.cache(clips, self.spec, self.cache_folder, build=False)

    def plan(self, seed: int, task: Task, class_weights: Tensor | None = None) -> TrainingPlan:
        """How to train: as the configuration says, for a task, with the seed of a fold."""
        values = self.configuration.values
        return TrainingPlan(
            epochs=self.epochs,
            lr=self.options.lr,
            optimizer=values["optimizer"],
            warmup_epochs=self.options.warmup_epochs,
            label_smoothing=self.options.label_smoothing,
            augment=values["augment"],
            seed=seed,
            task=task,
            class_weights=class_weights,
        )

    def settled(self, continued: Mapping[str, Any] | None = None) -> "Experiment":
        """The experiment with a precision in the place of each `auto`.

        Args:
            continued: the configuration of the run that it continues, in the main process; that
                run's precisions stay. None: it begins.
        """
        names = [n for n in precision.OPTIONS if getattr(self.options, n) == precision.AUTO]
        if not names:
            return self
        chosen: dict[str, str] = {}
        if if_main_process():
            chosen = {n: continued[n] for n in names if continued and n in continued}
            for name, value in chosen.items():
                say(f"{name}: {value} (as the run here began)")
            if new := [name for name in names if name not in chosen]:
                choice = precision.fastest(self.device, self.cache_folder)
                say(f"{', '.join(new)}: {choice.name} ({choice.reason})")
                chosen |= dict.fromkeys(new, choice.name)
        configuration = self.configuration.changed(ddp_broadcast(chosen))
        options = Options.of(configuration.values)
        return dataclasses.replace(self, configuration=configuration, options=options)

    def run_opts(self) -> dict[str, Any]:
        """The run options of SpeechBrain; the experiment is settled."""
        names = (
            "precision", "eval_precision", "compile", "grad_accumulation_factor",
            "max_grad_norm", "ckpt_interval_minutes",
        )  # fmt: skip
        return {name: getattr(self.options, name) for name in names} | {"device": self.device}


class Options(Settings):
    """The plain values of a configuration; `hparams/base.yaml` of a recipe describes them."""

    recipe: str = setting("", "name of the recipe")
    label: str = setting("", "name of the results folder")
    seed: int = setting(0, "seed of initialisation, order, dropout and augmentation", minimum=0)
    output_folder: str = setting("results", "folder of the run")
    data_folder: str | None = setting(
        None, "folder of the corpus; none: the embedded demonstration"
    )
    download: bool = setting(False, "download the corpus into data_folder")
    folds: str | int | list[int] = setting("all", "folds to run: all, or 1,3")
    few_shot: int | None = setting(None, "training clips of each class; none: all", minimum=1)
    cache_folder: str | None = setting(None, "folder of the features")
    cache_gigabytes: float = setting(
        20.0, "largest size of that folder; what was not used for longest goes first", minimum=0
    )
    reuse: Literal["auto", "off"] | int = setting(
        "auto",
        "what frozen blocks make of a clip is computed once: auto (where that changes nothing), "
        "off, or a number of augmented views of each clip to draw from",
        minimum=1,
    )
    max_length: int = setting(1024, "length of a clip in frames of 10 ms", minimum=1)
    windows: Windows = setting(
        "average",
        "longer clips: average trains on one of their windows and tests on the mean of all; first "
        "cuts them",
    )
    pooling: Pooling = setting("all", "how tokens become the vector that the head reads")
    patchout: Patchout | None = setting(
        None,
        "patches dropped in training: a share, or {time: share, frequency: share}; none: none is",
    )
    merge_tokens: int | None = setting(
        None,
        "tokens that merge into similar ones in every block, also in prediction; none: none does",
        minimum=1,
    )
    epochs: int = setting(1, "passes over the training clips", minimum=1)
    batch_size: int = setting(32, "clips per update", minimum=1)
    lr: float = setting(0.001, "peak learning rate", minimum=0)
    warmup_epochs: float = setting(0, "epochs in which the learning rate rises linearly", minimum=0)
    label_smoothing: float = setting(
        0.0, "share of each target spread over the classes", minimum=0, maximum=1
    )
    class_weights: Literal["balanced"] | None = setting(
        None, "weights of the classes in the loss: balanced, or none"
    )
    balanced_sampling: bool = setting(False, "draw clips so that all classes are equally frequent")
    device: str | None = setting(None, "cpu, cuda, cuda:1; none: a GPU if there is one")
    precision: str = setting(
        "fp32", "fp32, bf16, fp16 (GPU only), or auto: bf16 where it is native and faster"
    )
    eval_precision: str = setting("fp32", "precision in evaluation")
    compile: bool = setting(False, "use torch.compile")
    num_workers: int = setting(0, "loader processes", minimum=0)
    grad_accumulation_factor: int = setting(1, "batches per update", minimum=1)
    max_grad_norm: float = setting(0.0, "largest norm of the gradients; 0: no limit", minimum=0)
    ckpt_interval_minutes: float = setting(
        10, "minutes between checkpoints within an epoch", minimum=0
    )
    noprogressbar: bool = setting(False, "show no progress bar")
    debug: bool = setting(False, "two batches, one fold, one epoch")
    test_only: bool = setting(False, "evaluate the best checkpoints again")
    overwrite: bool = setting(False, "replace another run in the output folder; False refuses it")

    ADDED: ClassVar[tuple[str, ...]] = (
        "windows", "overwrite", "reuse", "cache_gigabytes", "patchout", "merge_tokens",
    )  # fmt: skip
    """Options that configurations written for version 0.1 lack."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Options":
        """Pick the options from the values of a configuration.

        Raises:
            ConfigError: one of them has the wrong type or range, or is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in (*names, *OBJECTS):
            if name not in values and name not in cls.ADDED:
                raise ConfigError(f"the configuration lacks the key '{name}'")
        if not callable(values["optimizer"]):
            raise ConfigError("'optimizer' must make an optimiser, e.g. !name:torch.optim.AdamW")
        augment = values["augment"]
        if not isinstance(augment, list) or not all(callable(a) for a in augment):
            raise ConfigError("'augment' must be a list of augmentations; [] for none")
        given = {name: values[name] for name in names if name in values}
        if given.get("patchout") is not None:
            given["patchout"] = Patchout.from_plain(given["patchout"], "patchout")
        return cls(**given)

    def added_defaults(self) -> list[str]:
        """The options in `ADDED` that have their default values."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return [name for name in self.ADDED if getattr(self, name) == defaults[name]]

    def check(self) -> None:
        """Refuse what cannot be used: empty names, endless epochs, devices, precisions, and
        options that exclude others."""
        for name in ("data_folder", "output_folder", "cache_folder"):
            if getattr(self, name) == "":
                raise ConfigError(f"'{name}' is empty: name it, or leave it out")
        if not self.warmup_epochs <= self.epochs:
            raise ConfigError(
                f"'warmup_epochs' must be at most the number of epochs ({self.epochs}), not "
                f"{self.warmup_epochs}: the learning rate would never reach its peak"
            )
        if self.overwrite and self.test_only:
            raise ConfigError(
                "`--overwrite` removes what `--test_only` would test: leave one of them out"
            )
        for name in precision.OPTIONS:
            value, known = getattr(self, name), ("fp32", "bf16", "fp16", precision.AUTO)
            if value not in known:
                raise ConfigError(f"'{name}' must be one of {known}{did_you_mean(value, known)}")
            if value == "fp16" and self._is_cpu():
                raise ConfigError(f"'{name}' fp16 needs a GPU; on the CPU use bf16 or fp32")
        if self.device is not None:
            require_device(self.device)

    def _is_cpu(self) -> bool:
        return (self.device or sb.utils.distributed.infer_device()) == "cpu"


def configured(command: CommandLine, recipe: Path) -> tuple[Configuration, Options]:
    """The configuration that a recipe runs; without a data folder, the embedded demonstration.

    A recipe with a `hparams/recipe.yaml` (its corpus and the settings that depend on it) also runs
    the method files of other recipes and of plugins, which do not mention a corpus.

    Args:
        command: the parsed command line.
        recipe: the folder of train.py.

    Raises:
        ConfigError: a key is unknown, missing, or has a value that cannot be used.
    """
    layers = [RECIPE] if (recipe / RECIPE).is_file() else []
    loaded = config.load(command, recipe, layers, Options)
    options = Options.of(loaded.values)
    if options.data_folder is None:
        if not (recipe / EMBEDDED).is_file():
            raise ConfigError(
                f"the recipe {recipe} has no demonstration ({EMBEDDED}): name the folder of its "
                "data with `--data_folder`"
            )
        loaded = config.load(command, recipe, [*layers, EMBEDDED], Options)
        options = Options.of(loaded.values)
    return loaded, options


def _command(recipe_file: Path, command: CommandLine) -> str:
    """The command that starts a recipe with a configuration, for messages."""
    recipe, relative = recipe_file.resolve().parent, os.path.relpath(recipe_file)
    if recipe.parent == places.recipes() and relative.startswith(os.pardir):
        file = Path(command.hparams)
        named = file.parent == Path("hparams") or places.plugins() in file.resolve().parents
        method = file.stem if named else file
        return f"toolkit train {recipe.name} {method}"
    return f"python {relative} {command.hparams}"


def say(text: str) -> None:
    """Print to the user, once for all processes."""
    if if_main_process():
        print(text, flush=True)


def main(run: Callable[[Sequence[str]], object]) -> None:
    """Run a recipe; `Program` says how it ends."""
    with Program(continues=True):
        try:
            run(sys.argv[1:])
        except RuntimeError as error:
            if OTHER_ENDED not in str(error):
                raise
            if if_main_process():
                raise RunError(
                    "another process of this job has ended: its own message, or that of the "
                    "launcher, says why"
                ) from None
            sys.exit(2)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _join_processes(device: str) -> None:
    """Join the process group if torchrun started this process, by nccl on GPUs and gloo on CPUs."""
    backend = "gloo" if device == "cpu" else "nccl"
    sb.utils.distributed.ddp_init_group({"distributed_backend": backend})
