"""What a checkpoint says of its features: read as data, and obeyed or refused key by key."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from toolkit.backbones.checkpoint import FAULTS, damaged, fetched, read_if_there
from toolkit.errors import BackboneError, did_you_mean, first_line

EXTRACTOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a range; `whole`: without a fraction."""

    low: float
    high: float
    whole: bool = False

    def accepts(self, value: object) -> bool:
        """Whether it is one, and finite."""
        kinds = int if self.whole else (int, float)
        return (
            isinstance(value, kinds)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        )

    def __str__(self) -> str:
        return f"a {'whole ' * self.whole}number from {self.low:g} to {self.high:g}"


@dataclasses.dataclass(frozen=True, init=False)
class OneOf:
    """One of a few values."""

    values: tuple[object, ...]

    def __init__(self, *values: object) -> None:
        object.__setattr__(self, "values", values)

    def accepts(self, value: object) -> bool:
        """Whether it is one of them; True is not 1."""
        return any(
            value == known and isinstance(value, bool) == isinstance(known, bool)
            for known in self.values
        )

    def __str__(self) -> str:
        return " or ".join(json.dumps(value) for value in self.values)


@dataclasses.dataclass(frozen=True)
class Derived:
    """What follows from the other keys and from the backbone's configuration."""

    expected: Callable[[Any, Any], object]
    """What the file says, with the extractor's defaults, and the configuration -> the value."""


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Anything: it changes nothing that the backbone reads of a clip."""


ExtractorKeys = Mapping[str, Number | OneOf | Derived | Ignored]
"""What a family does with each key that the file of a feature extractor can have."""

SAMPLE_RATES = Number(1_000, 384_000, whole=True)
SHARED_KEYS: ExtractorKeys = {
    "padding_side": OneOf("right"),
    "return_attention_mask": Ignored(),
    "processor_class": Ignored(),
    "tokenizer_class": Ignored(),
    "transformers_version": Ignored(),
}
"""Those that every extractor has."""


def read_extractor(source: str) -> dict[str, Any] | None:
    """What a checkpoint says of its features; None: it is a folder that says nothing.

    Raises:
        BackboneError: the file is damaged, or cannot be fetched.
    """
    folder = Path(source)
    if not folder.is_dir():
        from transformers import SequenceFeatureExtractor

        return fetched(source, SequenceFeatureExtractor.get_feature_extractor_dict, EXTRACTOR)
    processor = read_if_there(folder / PROCESSOR) or {}
    inside = processor.get("feature_extractor", processor.get("audio_processor"))
    if inside is None:
        return read_if_there(folder / EXTRACTOR)
    if not isinstance(inside, dict):
        raise damaged(folder / PROCESSOR, f"'feature_extractor' should be an object: {inside!r}")
    return inside


def checked_extractor(
    kind: Any, said: Mapping[str, Any], keys: ExtractorKeys, config: Any, source: str
) -> Any:
    """The feature extractor that a file describes.

    Args:
        kind: the class of transformers.
        said: the file.
        keys: what the family does with its keys.
        config: the configuration of the backbone.
        source: of the checkpoint, for messages.

    Raises:
        BackboneError: the file says something that the backbone's features do not obey.
    """
    named = said.get("feature_extractor_type", kind.__name__)
    if named != kind.__name__:
        raise BackboneError(
            f"{source} holds a {named!r:.60}, and its backbone reads what a {kind.__name__} makes: "
            "put the right one there"
        )
    known = {"feature_extractor_type": Ignored(), **SHARED_KEYS, **keys}
    for key, value in said.items():
        if key not in known:
            raise _refused(source, key, value, f"does not know{did_you_mean(key, known)}")
        rule = known[key]
        if isinstance(rule, Number | OneOf) and not rule.accepts(value):
            raise _refused(source, key, value, f"cannot obey: there it takes {rule}")
    obeyed = {key: value for key, value in said.items() if not isinstance(known[key], Ignored)}
    whole = SimpleNamespace(**(vars(kind()) | obeyed))
    for key, value in obeyed.items():
        rule = known[key]
        if isinstance(rule, Derived) and value != (wanted := rule.expected(whole, config)):
            raise _refused(source, key, value, f"cannot obey: all else there asks for {wanted}")
    try:
        return kind(**obeyed)
    except FAULTS as error:
        raise BackboneError(
            f"{source} says what no {kind.__name__} can do ({first_line(error)}): correct its "
            f"{EXTRACTOR}"
        ) from None


def _refused(source: str, key: str, value: object, reason: str) -> BackboneError:
    return BackboneError(
        f"{source} says of its features {key}: {value!r:.60}, which this toolkit {reason}"
    )
