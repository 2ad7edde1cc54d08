"""Few-shot training: the same number of training clips for every class."""

import numpy as np
import pandas as pd

from toolkit.data.manifest import class_matrix
from toolkit.errors import ConfigError


def few_shot(clips: pd.DataFrame, per_class: int, seed: int, classes: list[str]) -> pd.DataFrame:
    """Draw the same number of clips of every class at random.

    With the same seed, a smaller draw is a subset of a larger one. Where clips have several
    labels, a class's clips are drawn whatever other classes they have, so that a class may end up
    with more.

    Args:
        clips: the clips to choose from, with a column `label` (see `Manifest`).
        per_class: how many clips per class.
        seed: seed of the draw.
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
    chosen: pd.DataFrame = clips.loc[shuffled.index[first.any(axis=1)].sort_values()]
    return chosen
