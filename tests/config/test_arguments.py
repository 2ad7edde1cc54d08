"""Typed values: numbers and brackets are values, and text is text."""

import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe import ROOT

from toolkit import config
from toolkit.config.arguments import as_wanted
from toolkit.errors import ConfigError, UnknownName
from toolkit.registry import CORPORA, PEFT
from toolkit.settings import Settings, setting
from toolkit.training.experiment import configured

PATHS = (
    "/data/Field recordings #3",
    "/data/a: b",
    "2024",
    "&sounds",
    "*x",
    "true",
    "1e5",
    "010",
    "0x10",
    "[a",
    "[a, b]",
    "{x}",
    "'n Roll",
    "a, b",
    "- x",
    "!important",
    "%TAG",
    "@home",
    "`x`",
    "x #",
    "a: b: c",
    "~user",
    "a=b",
    "é ü",
    "…",
    "|",
    ">",
    "? x",
    "=",
    "<<",
    "<x>",
    "#1",
    "-5",
    ".",
    "..",
    "---",
    "...",
    "a\nb",
    "no",
    "2024-01-01",
    "1:30",
    "1_000",
    ".inf",
    ".nan",
    "C:\\x",
)


@pytest.mark.parametrize("text", PATHS)
def test_a_path_is_the_text_that_was_typed(text: str) -> None:
    recipe = ROOT / "recipes" / "YourSounds"
    apart = [["--data_folder", text]] if not text.startswith("--") else []
    for words in (*apart, [f"--data_folder={text}"]):
        command = config.parse_command_line(["hparams/lora.yaml", *words])
        _, options = configured(command, recipe)
        assert options.data_folder == text


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
@settings(deadline=None)
def test_any_text_is_text_where_text_is_wanted(text: str) -> None:
    if not text.strip() or text[0] in "'\"!" or text == "null":
        return
    command = config.parse_command_line(["h.yaml", f"--name={text}"])
    wanted = as_wanted(text, command.overrides["name"], str)
    assert wanted == text


def test_quotes_and_null_mean_what_they_mean_in_yaml() -> None:
    hint = str | None
    for text, value in (("null", None), ('"null"', "null"), ("'a b'", "a b"), ('"a\\nb"', "a\nb")):
        command = config.parse_command_line(["h.yaml", "--name", text])
        assert as_wanted(text, command.overrides["name"], hint) == value


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    | st.sampled_from(["--trust", "--x=1", "- a", "a #b", "null", "1", "", " ", "[", "!x", "&x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab #:-", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
@settings(deadline=None)
def test_what_is_typed_for_a_value_is_read_as_that_value(value: Any) -> None:
    """Also as a word of its own: no value can become another option."""
    text = config.typed(value)
    command = config.parse_command_line(["h.yaml", "--key", text, "--last", "1"])
    assert command.overrides == {"key": value, "last": 1}
    assert repr(command.overrides["key"]) == repr(value)
    assert not command.trust


@pytest.mark.parametrize("words", [["--lr", ""], ["--lr="], ["--lr", " "], ["--data_folder="]])
def test_an_empty_value_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"is empty: give a value, or null for none"):
        config.parse_command_line(["h.yaml", *words])


@pytest.mark.parametrize("text", ["[a] #b", "[a, #b\n c]", "- a #b", "'a' #b", "{a: b} #"])
def test_a_value_has_no_comment(text: str) -> None:
    with pytest.raises(ConfigError, match="would be a comment"):
        config.read_setting(text, None, "--x")


class Kinds(Settings):
    """Settings of every type."""

    text: str = setting("", "text")
    perhaps: str | None = setting(None, "text or none")
    number: int = setting(0, "a number")
    either: str | int = setting(0, "text or a number")
    texts: list[str] = setting([], "several texts")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("text", "2024", "2024"),
        ("text", "true", "true"),
        ("text", "null", "null"),
        ("perhaps", "null", None),
        ("perhaps", "1e3", "1e3"),
        ("number", "2024", 2024),
        ("number", "x", "x"),  # and refused by the setting
        ("either", "2024", 2024),
        ("either", "1,3", "1,3"),
        ("texts", "[a, b]", ["a", "b"]),
    ],
)
def test_the_type_of_a_setting_decides(name: str, text: str, value: object) -> None:
    hint = typing.get_type_hints(Kinds)[name]
    assert config.read_setting(text, hint, name) == value
    assert config.parse_settings([f"--{name}", text], Kinds) == {name: value}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("folder", {"name": "folder"}),
        ("folder:group_pattern=^(a #b)", {"name": "folder", "group_pattern": "^(a #b)"}),
        ("folder:group_pattern=2024", {"name": "folder", "group_pattern": "2024"}),
        ('folder:group_pattern="a,(b)"', {"name": "folder", "group_pattern": "a,(b)"}),
        ("folder:group_pattern=[a,b](c)", {"name": "folder", "group_pattern": "[a,b](c)"}),
    ],
)
def test_text_in_a_spec(spec: str, expected: dict[str, Any]) -> None:
    assert config.parse_spec(spec, CORPORA) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lora:rank=[", "not valid YAML"),
        ("lora:rank", "key=value"),
        ("lora:rank=", "is empty"),
        ("lora:", "key=value"),
        ("lora:,", "key=value"),
        ("lora:rank=1,", "key=value"),
        ("lora:rank=1,,alpha=2", "key=value"),
        ("lora:rank={a: 1", "not valid YAML"),
        ("lora:rank=*a", None),
        ("lroa:rank=1", "did you mean"),
        (":rank=1", "no PEFT method"),
    ],
)
def test_specs_that_are_none(spec: str, message: str | None) -> None:
    if message is None:
        assert config.parse_spec(spec, PEFT) == {"name": "lora", "rank": "*a"}
        return
    with pytest.raises((ConfigError, UnknownName), match=message):
        config.parse_spec(spec, PEFT)


def test_settings_of_registered_things_take_text_too() -> None:
    recipe = ROOT / "recipes" / "YourSounds"
    words = ["--data_folder", "x", "--corpus.name", "folder", "--corpus.group_pattern", "2024 #"]
    command = config.parse_command_line(["hparams/lora.yaml", *words])
    assert configured(command, recipe)[0].values["corpus"]["group_pattern"] == "2024 #"


def test_what_was_typed_is_what_is_kept() -> None:
    """The text of the configuration loads to the same values."""
    recipe = ROOT / "recipes" / "YourSounds"
    command = config.parse_command_line(["hparams/lora.yaml", "--data_folder", "2024"])
    loaded, _ = configured(command, recipe)
    assert config.flatten(loaded.text)["data_folder"] == "2024"
