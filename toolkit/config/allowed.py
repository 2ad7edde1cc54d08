"""The callables that a configuration may name: by name, each of the kind that its key takes.

A package would be too much to allow: torch, SpeechBrain and the toolkit hold functions that write,
delete, download or run whatever their arguments say.
"""

import dataclasses
import importlib
import inspect
import pydoc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toolkit import plugins
from toolkit.errors import ConfigError, did_you_mean
from toolkit.foreign import blamed

CALLABLE_TAGS = ("!new:", "!name:", "!apply:")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of callable.

    Attributes:
        name: what messages call it.
        tag: how a key that takes it wants it: made (`!new:`) or to be made later (`!name:`).
        names: module -> names of the callables that it may have from there.
        fits: whether a class of a plugin is of this kind.
    """

    name: str
    tag: str
    names: Mapping[str, Sequence[str]]
    fits: Callable[[type], bool]

    def paths(self) -> list[str]:
        """The dotted paths of `names`."""
        return [f"{module}.{name}" for module, names in self.names.items() for name in names]


def _is_optimiser(target: type) -> bool:
    from torch.optim import Optimizer

    return issubclass(target, Optimizer)


def _is_scheduler(target: type) -> bool:
    from torch.optim.lr_scheduler import LRScheduler

    return issubclass(target, LRScheduler)


def _is_augmentation(target: type) -> bool:
    """Whether its objects can be called as `toolkit.data.augment.Augmentation`."""
    call = getattr(target, "forward", None) or target.__call__
    try:
        inspect.signature(call).bind("self", "features", "targets", "generator")
    except (TypeError, ValueError):
        return False
    return "__call__" in dir(target)


OPTIMISER = Kind(
    "optimiser",
    "!name:",
    {
        "torch.optim": (
            "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam",
            "RMSprop", "Rprop", "SGD",
        )
    },
    _is_optimiser,
)  # fmt: skip
SCHEDULER = Kind(
    "scheduler",
    "!name:",
    {
        "torch.optim.lr_scheduler": (
            "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR",
            "ExponentialLR", "LinearLR", "MultiStepLR", "OneCycleLR", "PolynomialLR",
            "ReduceLROnPlateau", "StepLR",
        )
    },
    _is_scheduler,
)  # fmt: skip
AUGMENTATION = Kind(
    "augmentation",
    "!new:",
    {"toolkit.data.augment": ("SpecAugment", "Mixup")},
    _is_augmentation,
)
SPEECHBRAIN = Kind(
    "SpeechBrain augmentation",
    "!new:",
    {
        "speechbrain.augment.time_domain": (
            "ChannelDrop", "ChannelSwap", "CutCat", "DoClip", "DropBitResolution", "DropChunk",
            "DropFreq", "FastDropChunk", "RandAmp", "Resample", "SignFlip", "SpeedPerturb",
        ),
        "speechbrain.augment.freq_domain": ("RandomShift", "SpectrogramDrop", "Warping"),
    },
    lambda target: False,
)  # fmt: skip
"""Those without files; for keys of recipes other than the toolkit's own."""

KINDS = (OPTIMISER, SCHEDULER, AUGMENTATION, SPEECHBRAIN)
WANTED = {"optimizer": OPTIMISER, "augment": AUGMENTATION}
"""The key of a recipe -> the only kind that it takes; any other key takes all kinds."""


def find_callable(where: str, tag: str, trusted: bool) -> Any:
    """The object that a tag such as `!name:torch.optim.AdamW` names.

    Args:
        where: the key whose value carries the tag.
        tag: one of `CALLABLE_TAGS` and a dotted path.
        trusted: whether it may be anything that can be imported.

    Raises:
        ConfigError: it does not exist, it is not allowed, or it is not of the kind that the key
            takes.
        PluginError: the plugin that has it is broken.
    """
    kind, _, path = tag.partition(":")
    if trusted:
        return _find_any(where, path)
    if kind == "!apply":
        raise ConfigError(
            f"'{where}' calls {path} while the configuration is read, which only `--trust` allows"
        )
    wanted = WANTED.get(where.split(".")[0])
    kinds = KINDS if wanted is None else (wanted,)
    target = _find_allowed(path, kinds)
    if target is None and wanted is None:
        known = ", ".join(f"{kind.name}s of {' and '.join(kind.names)}" for kind in KINDS)
        raise ConfigError(
            f"'{where}' names {path}, which a configuration may not name (allowed: {known}, and "
            "those of plugins; any callable is allowed with `--trust`)"
        )
    if target is None and wanted is not None:
        known = ", ".join(wanted.paths())
        raise ConfigError(
            f"'{where}' names {path}, which is no {wanted.name} that a configuration may name"
            f"{did_you_mean(path, wanted.paths())} (allowed: {known}, and those of plugins; any "
            "callable is allowed with `--trust`)"
        )
    if wanted is not None and f"{kind}:" != wanted.tag:
        raise ConfigError(f"'{where}' takes {wanted.tag}{path}, not {tag}")
    return target


def _find_any(where: str, path: str) -> Any:
    try:
        target = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"'{where}' names {path}, which cannot be imported: {error}") from error
    if target is None:
        raise ConfigError(f"'{where}' names {path}, which does not exist")
    return target


def _find_allowed(path: str, kinds: Sequence[Kind]) -> Any:
    """The class of that path if one of the kinds has it, itself or from a plugin; else None."""
    module, _, name = path.rpartition(".")
    if path in {allowed for kind in kinds for allowed in kind.paths()}:
        return getattr(importlib.import_module(module), name, None)
    file = plugins.modules().get(module)
    if file is None:
        return None
    with blamed(f"the plugin of {path} is broken", file.parent):
        target = getattr(importlib.import_module(module), name, None)
    if not isinstance(target, type) or target.__module__ != module:
        return None
    return target if any(kind.fits(target) for kind in kinds) else None
