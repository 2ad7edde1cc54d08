"""Which rounds of a corpus are run, and which of the training clips are used."""

import numpy as np
import pandas as pd

from toolkit.data.manifest import class_matrix
from toolkit.data.splits import Split, cross_validation
from toolkit.errors import ConfigError

__all__ = ["Split", "chosen_folds", "cross_validation", "few_shot", "selected"]


def selected(splits: list[Split], wanted: str | int | list[int]) -> list[Split]:
    """The splits whose test fold is wanted: `all`, a number, a list, or `"1,3"`.

    Raises:
        ConfigError: not a list of folds, or no such fold.
    """
    numbers = chosen_folds([split.test for split in splits], wanted)
    return [split for split in splits if split.test in numbers]


def chosen_folds(tested: list[int], wanted: str | int | list[int]) -> list[int]:
    """The test folds that are wanted; see `selected`."""
    if wanted == "all":
        return tested
    parts = wanted.split(",") if isinstance(wanted, str) else wanted
    parts = parts if isinstance(parts, list) else [parts]
    known = {str(number): number for number in tested}
    names = {str(part).strip() for part in parts}
    if not names or not names <= known.keys():
        raise ConfigError(
            f"'folds' must be 'all' or some of {', '.join(known)}, e.g. 1,3, not {wanted!r}"
        )
    return [number for name, number in known.items() if name in names]


def few_shot(clips: pd.DataFrame, per_class: int, seed: int, classes: list[str]) -> pd.DataFrame:
    """As many clips of every class, drawn at random; fewer are a part of more with the same seed.

    Where clips have several labels, a class's clips are drawn whatever else they hold, so that
    a class may have more of them.

    Args:
        clips: those to choose from, with a column `label` (see `Manifest`).
        per_class: k.
        seed: of the choice.
        classes: class names, for messages.

    Raises:
        ConfigError: a class has fewer clips.
    """
    shuffled = clips.sample(frac=1, random_state=np.random.default_rng(seed))
    held = class_matrix(shuffled["label"], len(classes))
    first = (held == 1) & (held.cumsum(axis=0) <= per_class)
    counts = first.sum(axis=0)
    short = np.flatnonzero((counts > 0) & (counts < per_class))
    if len(short):
        fewest = short[counts[short].argmin()]
        raise ConfigError(
            f"'few_shot' {per_class}: the class {classes[fewest]!r} has only "
            f"{counts[fewest]} training clips; ask for at most {counts[fewest]}"
        )
    return clips.loc[shuffled.index[first.any(axis=1)].sort_values()]
