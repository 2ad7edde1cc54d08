"""Which clips train, validate and test: the rounds of a corpus, and splits for one without any.

Every corpus numbers its parts as folds. A corpus with official folds is cross-validated; one with
a fixed split has the folds `TRAIN`, `VALID` and `TEST` and the single round `FIXED`; one with
another protocol (leave one speaker out, ...) lists its rounds itself.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from toolkit.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Split:
    """One round of an evaluation: numbers of folds; the round is named after its `test` fold."""

    train: tuple[int, ...]
    valid: int
    test: int


TRAIN, VALID, TEST = 1, 2, 3
FIXED = (Split((TRAIN,), VALID, TEST),)
"""The only round of a corpus with a fixed split."""
PARTS = {TRAIN: "training", VALID: "validation", TEST: "test"}
"""What the folds of a fixed split are called."""


def cross_validation(folds: list[int]) -> list[Split]:
    """Each fold is tested once; the next one (cyclically) validates, the others train.

    Raises:
        ConfigError: fewer than three folds.
    """
    if len(folds) < 3:
        raise ConfigError(f"cross-validation needs at least three folds, not {folds}")
    splits = []
    for position, test in enumerate(folds):
        valid = folds[(position + 1) % len(folds)]
        train = tuple(fold for fold in folds if fold not in (test, valid))
        splits.append(Split(train, valid, test))
    return splits


def selected(splits: list[Split], wanted: str | int | list[int]) -> list[Split]:
    """The splits whose test fold is wanted.

    Args:
        splits: the rounds of a corpus.
        wanted: `"all"`, a number, a list of numbers, or `"1,3"`.

    Raises:
        ConfigError: not a list of folds, or no such fold.
    """
    numbers = chosen_folds([split.test for split in splits], wanted)
    return [split for split in splits if split.test in numbers]


def chosen_folds(tested: list[int], wanted: str | int | list[int]) -> list[int]:
    """The wanted ones among the test folds `tested`; `wanted` as in `selected`."""
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


def stratified_parts(
    classes: NDArray[np.int64], groups: Sequence[str], shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Assign clips to parts so that classes are stratified and groups stay together.

    Greedy: the largest groups first (ties in random order), each to the part that lacks its classes
    most. If every clip is a group, the counts are within one clip of the wanted ones. No part stays
    empty if there are at least as many groups as parts.

    Args:
        classes: [N, C] 0 or 1, the classes of each clip.
        groups: N names; clips of the same name stay together.
        shares: wanted share of each part; they sum to 1.
        seed: seed of the random order.

    Returns:
        [N] the number of each clip's part, from 0.
    """
    codes, names = pd.factorize(np.asarray(groups))
    counts = np.zeros((len(names), classes.shape[1]))
    np.add.at(counts, codes, classes)
    sizes = np.bincount(codes, minlength=len(names))
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    lacking = np.outer(shares, counts.sum(axis=0))  # [P, C]
    parts = np.empty(len(names), dtype=np.int64)
    empty = set(range(len(shares)))
    for place, group in enumerate(order):
        need = lacking @ counts[group]
        if len(empty) >= len(order) - place:  # as many groups are left as parts without any
            need[sorted(set(range(len(shares))) - empty)] = -np.inf
        part = int(np.argmax(need))
        empty.discard(part)
        parts[group] = part
        lacking[part] -= counts[group]
    return parts[codes]
