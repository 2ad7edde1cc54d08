"""Equal budgets: the size at which a method trains as many parameters as it may.

A method declares nothing for this. Its size is the first of some well-known integer settings that
it has, and the size that fits is searched by counting parameters on the meta device.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import ConfigError
from toolkit.files import write_atomically
from toolkit.registry import PEFT

SIZES = (
    "rank", "reduction", "bottleneck", "width", "prompts", "tokens", "num_experts", "experts",
)  # fmt: skip
"""Names of settings that say how large a method is, in the order in which they are tried."""

LARGEST = 4096
POINTS = 24  # sizes looked at in one round of the search


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a method may and does spend.

    Attributes:
        target: trainable parameters outside the head that it should have.
        found: those that it has.
        setting: what was changed; None: the method has no size to change.
        value: its value now.
    """

    target: int
    found: int
    setting: str | None = None
    value: int | None = None

    @property
    def distance(self) -> float:
        """How far it is from the target, in % of that."""
        return 100 * abs(self.found - self.target) / self.target

    @property
    def overrides(self) -> dict[str, int]:
        """What to change in a configuration."""
        if self.setting is None or self.value is None:
            return {}
        return {f"peft.{self.setting}": self.value}


Count = Callable[[Mapping[str, Any]], int]
"""Trainable parameters outside the head of a method's configuration; raises `ConfigError`."""


def fit(
    peft: Mapping[str, Any], target: int, within: float, count: Count, size: str | None = None
) -> Fit:
    """Choose a method's size so that it trains as many parameters as it may.

    The sizes that the method has are tried in turn until one comes near enough; if none does, the
    nearest is taken.

    Args:
        peft: the method's configuration.
        target: parameters.
        within: how far from them is near enough, in %.
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
    """The settings of a method that say its size and are in use."""
    method = PEFT.create(peft).as_dict()
    return (name for name in SIZES if type(method.get(name)) is int)


def _search(peft: Mapping[str, Any], setting: str, target: int, count: Count) -> Fit:
    """The nearest size: a geometric grid, then finer ones between the neighbours of its best.

    Sizes that the method refuses are passed over, so nothing is assumed but that near the best
    size others are good too.
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
    """A fit that was found before, or one made and kept now."""
    if file.is_file():
        return Fit(**json.loads(file.read_text(encoding="utf-8")))
    found = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(dataclasses.asdict(found)))
    return found
