"""Whether a fold reads states in place of features: the option `reuse`."""

from collections.abc import Callable, Iterable

import pandas as pd
from speechbrain.utils.distributed import ddp_broadcast, if_main_process

from toolkit.errors import ConfigError
from toolkit.features.cache import FeatureCache
from toolkit.features.cache_folder import GIGABYTE, make_room
from toolkit.features.state_store import StateStore
from toolkit.model import AudioClassifier
from toolkit.reuse import FrozenPart
from toolkit.training.experiment import Experiment
from toolkit.training.states import Reading, States

Tables = Callable[[States], Iterable[tuple[pd.DataFrame, Reading]]]
"""What a run will read: windows, and how."""


def states_of(
    experiment: Experiment,
    model: AudioClassifier,
    cache: FeatureCache,
    rows: pd.Series,
    stores: dict[str, StateStore],
    tables: Tables,
) -> tuple[States | None, str]:
    """The states that a fold reads; None: it reads features.

    Args:
        experiment, model, cache, rows, stores: as for `States`.
        tables: what the run will read.

    Returns:
        the states, and what was chosen and why; nothing if the user has chosen.

    Raises:
        ConfigError: the user asks for views, and there cannot be any.
    """
    wanted = experiment.options.reuse
    if wanted == "off":
        return None, ""
    try:
        part = _frozen_part(experiment, model)
        _require_equal_epochs(experiment)
        states = _smallest(experiment, model, part, cache, rows, stores)
        size = _with_room(experiment, states, tables(states))
    except ConfigError as error:
        if wanted != "auto":
            raise
        return None, f"reuse: off, because {error}"
    number = states.training.views
    views = f"; training draws from {number} augmented views" if number > 1 else ""
    views = "; training reads one augmented view" if number == 1 else views
    left = f"{size / 1e6:,.1f} MB to compute" if size else "all on disk already"
    block = states.part.block
    frozen = f"{block} of {model.backbone.depth} blocks are" if block else "the front end is"
    return states, (
        f"reuse: on, because {frozen} frozen: the output for each clip is computed once "
        f"({left}){views}"
    )


def _require_equal_epochs(experiment: Experiment) -> None:
    """Refuse to choose reuse where that would change what is trained."""
    augment = experiment.configuration.values["augment"]
    if augment and experiment.options.reuse == "auto":
        names = ", ".join(type(augmentation).__name__ for augmentation in augment)
        raise ConfigError(
            f"{names} changes the clips in every epoch: `--reuse 8` keeps 8 views of each clip, "
            "and `--augment []` trains without"
        )


def _frozen_part(experiment: Experiment, model: AudioClassifier) -> FrozenPart:
    """The part of a model below the first block that trains; refused if nothing is below."""
    model.eval()
    part = model.frozen_part()
    if part.block == 0 and experiment.spec.spectral:
        raise ConfigError(
            "the first block trains already (with `--peft.layers 'last 2'` only the last two would)"
        )
    return part


def _smallest(
    experiment: Experiment,
    model: AudioClassifier,
    part: FrozenPart,
    cache: FeatureCache,
    rows: pd.Series,
    stores: dict[str, StateStore],
) -> States:
    """The smallest states from which the model computes the same."""
    try:
        return States(experiment, model, model.pooled_part(), cache, rows, stores)
    except ConfigError:
        return States(experiment, model, part, cache, rows, stores)


def _with_room(
    experiment: Experiment, states: States, tables: Iterable[tuple[pd.DataFrame, Reading]]
) -> int:
    """Make room for all states of the run; how many bytes are still to be computed.

    Raises:
        ConfigError: there is no room.
    """
    limit, root = experiment.options.cache_gigabytes, experiment.cache_folder
    size, fits = 0, True
    if if_main_process():
        size = states.size(tables)
        fits = not size or make_room(root, size, round(limit * GIGABYTE))
    found: tuple[int, bool] = ddp_broadcast((size, fits))
    size, fits = found
    if not fits:
        raise ConfigError(
            f"what the frozen blocks make of the clips takes {size / GIGABYTE:.2g} GB more, which "
            f"do not fit into {root}: raise its limit of {limit:g} GB with `--cache_gigabytes`, "
            "free some space (`toolkit cache list`), or use another `--cache_folder`"
        )
    return size
