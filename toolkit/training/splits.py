"""Which folds train, validate and test."""

import dataclasses

from toolkit.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Split:
    """One round of cross-validation; `test` also names it."""

    train: tuple[int, ...]
    valid: int
    test: int


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
    """The splits whose test fold is wanted: `all`, a number, a list, or `"1,3"`.

    Raises:
        ConfigError: not a list of folds, or no such fold.
    """
    if wanted == "all":
        return splits
    parts = wanted.split(",") if isinstance(wanted, str) else wanted
    parts = parts if isinstance(parts, list) else [parts]
    known = {str(split.test): split for split in splits}
    names = {str(part).strip() for part in parts}
    if not names or not names <= known.keys():
        raise ConfigError(
            f"'folds' must be 'all' or some of {', '.join(known)}, e.g. 1,3, not {wanted!r}"
        )
    return [split for name, split in known.items() if name in names]
