"""Settings that hold settings: how they are built from mappings, and what a refusal says."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from toolkit.errors import ConfigError
from toolkit.settings import Settings, setting


class Wheel(Settings):
    """A part; a word is its material."""

    material: str = setting("steel", "what it is made of")
    spokes: int = setting(8, "how many", minimum=3)

    @classmethod
    def from_plain(cls, value: Any, where: str) -> "Wheel":
        return super().from_plain({"material": value} if isinstance(value, str) else value, where)


class Frame(Settings):
    """A part that holds parts."""

    front: Wheel = setting(Wheel(), "one part")
    wheels: list[Wheel] = setting([], "a list of parts")
    spare: Wheel | None = setting(None, "a part, or none")
    named: dict[str, Wheel | int] = setting({}, "parts or numbers by name")


def test_mappings_become_settings_and_plain_values_again() -> None:
    plain = {
        "front": {"material": "wood"},
        "wheels": [{"spokes": 5}, "brass"],
        "spare": {},
        "named": {"left": {"spokes": 4}, "right": 2},
    }
    frame = Frame.from_mapping(plain, "frame")
    assert frame.front.material == "wood"
    assert [type(wheel) for wheel in frame.wheels] == [Wheel, Wheel]
    assert [wheel.spokes for wheel in frame.wheels] == [5, 8]
    assert frame.wheels[1].material == "brass"
    assert isinstance(frame.spare, Wheel)
    assert isinstance(frame.named["left"], Wheel) and frame.named["right"] == 2
    written = json.loads(json.dumps(frame.as_dict()))
    assert written["named"] == {"left": {"material": "steel", "spokes": 4}, "right": 2}
    assert Frame.from_mapping(written, "frame").as_dict() == written


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wheels": [{}, {"spoke": 5}]}, "unknown setting 'frame.wheels.1.spoke'.*'spokes'"),
        ({"wheels": [{}, {"spokes": 2}]}, "^frame.wheels.1: 'spokes' must be at least 3, not 2"),
        ({"wheels": [7]}, "'frame.wheels.0' must be a mapping of settings, not 7"),
        ({"wheels": "steel"}, "^frame: 'wheels' must be list of mapping of settings, not 'steel'"),
        ({"spare": {"spokes": "4"}}, "^frame.spare: 'spokes' must be int, not '4'"),
        ({"named": {"left": {"x": 1}}}, "unknown setting 'frame.named.left.x'"),
    ],
)
def test_a_refusal_names_the_whole_path(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Frame.from_mapping(values, "frame")
