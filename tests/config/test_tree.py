"""YAML documents as trees: what is read, what is written back, and where the limits are."""

import itertools
from typing import Any

import pytest
from hyperpyyaml import load_hyperpyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.config.tree import DEEPEST, MOST_NODES, Tagged, dump, dump_in_one_line, parse
from toolkit.errors import ConfigError

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    [
        "",
        "yes",
        "no",
        "null",
        "~",
        "2024",
        "1e3",
        "2024-01-01",
        "=",
        "<<",
        "!x",
        "&a",
        "*a",
        "a: b",
        "a #b",
        "# a",
        "- a",
        "[",
        "{}",
        "'",
        '"',
        "\\",
        "é",
        "a\nb",
        " a",
        "a ",
        "%",
        "@",
        "`",
        "010",
    ]
)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
SINGLE = TEXTS | NUMBERS | st.booleans() | st.none()
TAGS = st.sampled_from(["!ref", "!new:a.b", "!name:torch.optim.AdamW", "tag:yaml.org,2002:set"])


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    plain = st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
    return plain | st.builds(Tagged, TAGS, plain | TEXTS)


TREES = st.recursive(SINGLE, _containers, max_leaves=12)


@given(TREES)
@settings(deadline=None)
def test_what_is_written_is_read_back(tree: Any) -> None:
    for text in (dump(tree), dump_in_one_line(tree)):
        found = parse(text, "it")
        assert found == tree
        assert repr(found) == repr(tree)  # 1 is not 1.0, and -0.0 not 0.0


def test_merges_and_aliases_are_applied() -> None:
    tree = parse(
        "a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: {z: 0, <<: [{x: 5, z: 1}, *a]}\nd: *a\n", "it"
    )
    assert tree["b"] == {"x": 3, "y": [2]}
    assert tree["c"] == {"x": 5, "z": 0, "y": [2]}
    assert tree["d"] == tree["a"] and tree["d"] is not tree["a"]


def test_a_tagged_mapping_in_a_list_keeps_its_values() -> None:
    assert parse("[!new:Mixup {alpha: 0.5}]", "it") == [Tagged("!new:Mixup", {"alpha": 0.5})]


def test_a_tag_takes_a_bracket_for_a_part_of_it() -> None:
    """As in HyperPyYAML; the message says how to write it."""
    for text in ("[!new:a.b]", "{k: !x}"):
        with pytest.raises(ConfigError, match="put a space between a tag and the bracket"):
            parse(text, "it")
    assert parse("[!new:a.b , !x ]", "it") == [Tagged("!new:a.b", ""), Tagged("!x", "")]


LETTERS = "abcdefghi"
BOMBS = {
    "aliases": "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(
        f"{new}: &{new} [{','.join(9 * [f'*{old}'])}]\n" for old, new in itertools.pairwise(LETTERS)
    ),
    "merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n  k{i}: 1\n" for i in range(1, 2000)),
    "itself": "a: &a [*a]",
    "itself, merged": "a: &a {<<: *a}",
    "brackets": "[" * 3000,
    "closed brackets": "[" * 3000 + "]" * 3000,
    "braces": "{a: " * 3000,
    "dashes": "- " * 50_000,
    "questions": "? " * 50_000,
    "items": "[" + "a," * 90_000 + "]",
    "keys": "\n".join(f"k{i}: 1" for i in range(20_000)),
    "characters": "a" * 1_000_000,
    "digits": "a: " + "9" * 100_000,
    "hexadecimal digits": "a: 0x" + "f" * 100_000,
    "documents": "---\n" * 40_000,
    "directives": "%a\n" * 50_000,
    "exclamation marks": "a: {" + "!" * 100_000,
    "anchors": "&a " * 60_000,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_at_once(kind: str) -> None:
    """How fast is measured by nobody; without a limit these would not end."""
    with pytest.raises(ConfigError, match=r"^it (is|has)") as caught:
        parse(BOMBS[kind], "it")
    assert len(str(caught.value)) < 1000


def test_the_limits_themselves_are_allowed() -> None:
    deepest = "[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1)
    parse(deepest, "it")
    with pytest.raises(ConfigError, match=f"more than {DEEPEST} levels"):
        parse(f"[{deepest}]", "it")
    parse(f"[{'1,' * (MOST_NODES - 1)}]", "it")
    with pytest.raises(ConfigError, match="more than 10,000 values"):
        parse(f"[{'1,' * MOST_NODES}]", "it")


@pytest.mark.parametrize(
    "text",
    [
        "!!int x",
        "!!float x",
        "!!bool x",
        "!!int ''",
        "a: {[1]: 2}",
        "? {a: b}\n: c",
        "{!x y: 1}",
        "a: 1\na: 2",
        "<<: 3",
        "<<: [1]",
        "<<: !x {a: 1}",
        "\x00",
        "a: \x07",
        "*a",
        "%YAML 3",
        "a: b: c",
        "@a",
        "`a",
        "!<>",
        "!!",
        "&",
        "a: |x",
        "? ",
        "{",
        "]",
        "\ttab: x",
        "!<! a",
    ],
)
def test_what_is_no_document(text: str) -> None:
    try:
        parse(text, "it")
    except ConfigError as error:
        assert str(error).startswith("it")


@given(st.text("[]{}:,-?!&*#|>'\"%@`<~ \nab1.", max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, "it")
    except ConfigError as error:
        assert str(error).startswith("it")


def test_what_other_programs_add_to_yaml_is_not_read() -> None:
    load_hyperpyyaml("a: 1")  # after which ruamel's loaders take brackets for tuples
    assert parse("a: (1, 2)", "a test") == {"a": "(1, 2)"}
