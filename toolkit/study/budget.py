"""Equal budgets: finding the size at which a method trains a given number of parameters.

A method declares nothing for this. Its size is the first of some well-known integer settings that
it has, and the value that fits is searched for by counting parameters on the meta device.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import ConfigError
from toolkit.registry import PEFT
from toolkit.typed_json import read_if_there, write_json

SIZES = (
    "rank", "reduction", "bottleneck", "width", "prompts", "tokens", "num_experts", "experts",
)  # fmt: skip
"""Names of settings that determine the size of a method, in the order in which they are tried."""

LARGEST = 4096
POINTS = 24  # sizes tried in one round of the search


@dataclasses.dataclass(frozen=True)
class Fit:
    """How many parameters a method should train, and how many it does.

    Attributes:
        target: trainable parameters outside the head that it should have.
        found: those that it has.
        setting: the setting that was changed; None: the method has none that can be.
        value: its new value.
    """

    target: int
    found: int
    setting: str | None = None
    value: int | None = None

    @property
    def distance(self) -> float:
        """The difference from the target, in % of the target."""
        return 100 * abs(self.found - self.target) / self.target

    @property
    def overrides(self) -> dict[str, int]:
        """The overrides that give a configuration this size."""
        if self.setting is None or self.value is None:
            return {}
        return {f"peft.{self.setting}": self.value}


Count = Callable[[Mapping[str, Any]], int]
"""Trainable parameters outside the head of a method's configuration; raises `ConfigError`."""


def fit(
    peft: Mapping[str, Any], target: int, within: float, count: Count, size: str | None = None
) -> Fit:
    """Choose the size of a method so that it trains a given number of parameters.

    The settings of `SIZES` that the method has are tried in turn until one comes close enough; if
    none does, the closest is taken.

    Args:
        peft: the method's configuration.
        target: the number of parameters.
        within: the difference in % that is close enough.
        count: counts the parameters of a changed configuration.
        size: the only setting to try; None: see `SIZES`.
    """
    best = Fit(target, count(peft))
    for setting in [size] if size else sizes_of(peft):
        found = _search(peft, setting, target, count)
        if best.setting is None or found.distance < best.distance:
            best = found
        if best.distance <= within:
            break
    return best


def sizes_of(peft: Mapping[str, Any]) -> Iterator[str]:
    """Those of `SIZES` that a method has and that are in use."""
    method = PEFT.create(peft).as_dict()
    return (name for name in SIZES if type(method.get(name)) is int)


def _search(peft: Mapping[str, Any], setting: str, target: int, count: Count) -> Fit:
    """The closest size: a geometric grid, then finer ones between the neighbours of the best value.

    Values that the method refuses are skipped. The search only assumes that values near the best
    one are good too.
    """

    @functools.cache
    def attempt(value: int) -> Fit | None:
        try:
            return Fit(target, count({**peft, setting: value}), setting, value)
        except ConfigError:
            return None

    configured: int = PEFT.create(peft).as_dict()[setting]
    found = {configured: Fit(target, count(peft), setting, configured)}
    low, high = 1, LARGEST
    while True:
        grid = np.unique(np.geomspace(low, high, POINTS).round().astype(int)).tolist()
        found |= {value: fit for value in grid if (fit := attempt(value)) is not None}
        best = min(found, key=lambda value: found[value].distance)
        low = max((value for value in grid if value < best), default=best)
        high = min((value for value in grid if value > best), default=best)
        if high - low <= 2:
            return found[best]


def remembered(file: Path, make: Callable[[], Fit]) -> Fit:
    """Read a fit that was found before, or find it now and keep it in a file."""
    remedy = "delete it, and the study fits that method again"
    known = read_if_there(file, Fit, lambda values: values, remedy)
    if known is not None:
        return known
    found = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    return found
