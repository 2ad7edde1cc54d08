"""References: as HyperPyYAML resolves them, but bounded, and text stays text."""

from typing import Any

import pytest
from hyperpyyaml import load_hyperpyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.config.arithmetic import evaluate
from toolkit.config.references import resolve
from toolkit.config.tree import Tagged, parse
from toolkit.errors import ConfigError

AS_HYPERPYYAML = (
    "a: 3\nb: !ref <a>",
    "a: 3\nb: !ref <a> + 2",
    "a: 3\nb: !ref <a> * 2 / 4",
    "a: 3\nb: !ref <a> // 2 + 7 % 4 ** 2",
    "a: 3\nb: !ref <a> - <a>",
    "a: 0.5\nb: !ref (<a> + 1) * 2",
    "a: 3\nb: !ref results/<a>",
    "a: x\nb: !ref <a>/<a>",
    "a: x\nb: !ref <a> and 3 + 3",
    "a: {b: {c: 7}}\nd: !ref <a[b][c]>",
    "a: {b: {c: 7}}\nd: !ref <a[b]>",
    "a: {b: {c: 7}}\nd: !copy <a[b]>",
    "a: [1, 2]\nb: !ref <a>",
    "a: null\nb: !ref x<a>",
    "a: true\nb: !ref x<a>",
    "a: 1\nb: !ref plain",
    "a: '12'\nb: !ref <a>",
    "__a: 1\nb: !ref <__a>",
    "a: {b: !ref <c>}\nc: 4\nd: !ref <a[b]>",
    "a: 10\nb: !ref <a>/x<a>",
)


@pytest.mark.parametrize("text", AS_HYPERPYYAML)
def test_as_hyperpyyaml(text: str) -> None:
    found = {key: v for key, v in resolve(parse(text, "it")).items() if not key.startswith("__")}
    assert found == load_hyperpyyaml(text)


NUMBERS = st.integers(1, 99) | st.floats(0.5, 99).map(lambda number: round(number, 2))
EXPRESSIONS = st.recursive(
    NUMBERS.map(str),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner)
        | st.builds("-{}".format, inner)
    ),
    max_leaves=5,
)


@given(EXPRESSIONS)
@settings(deadline=None)
def test_arithmetic_is_that_of_python(text: str) -> None:
    try:
        expected = eval(text)
    except ZeroDivisionError:
        with pytest.raises(ConfigError, match="divides by zero"):
            evaluate(text)
        return
    if abs(expected) <= 10**18:
        assert evaluate(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9**9**9", "exponents go to 64"),
        ("9**9**9**9", "exponents go to 64"),
        ("10**18 * 10", "exceeds 10"),
        ("2**64", "exceeds 10"),
        ("1e400", "exceeds 10"),
        ("1e300 * 1e300", "exceeds 10"),
        ("2**-65", "exponents go to 64"),
        ("(-8)**0.5", "exponents go to 64"),
        ("1 / 0", "divides by zero"),
        ("1 % 0", "divides by zero"),
        ("0 ** -1", "divides by zero"),
    ],
)
def test_numbers_without_bounds(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 90,
        "-" * 200,
        "1 +",
        "1(2)",
        "e",
        "9" * 300,
        "_",
        "1..2",
        "()",
        "1,2",
        "1 if 1 else 2",
        "__import__('os')",
        "a.b",
        "[1]",
        "'x' * 9",
        "1e",
        "lambda: 1",
        " 1",
    ],
)
def test_what_is_no_arithmetic_is_text(text: str) -> None:
    assert evaluate(text) == text


def test_references_are_followed_in_any_order() -> None:
    """HyperPyYAML refuses a reference to what is resolved later."""
    tree = parse("a: !ref <b>\nb: !ref x<c>\nc: 5", "it")
    assert resolve(tree) == {"a": "x5", "b": "x5", "c": 5}


def ref(text: str) -> Tagged:
    """A reference."""
    return Tagged("!ref", text)


def test_text_that_is_referred_to_is_text() -> None:
    """Not so in HyperPyYAML, which would follow `<x>` and compute `1/2`."""
    tree = {"folder": "/data/<x>", "date": "1/2", "a": ref("<folder>/b"), "b": ref("<date>/3")}
    assert resolve(tree)["a"] == "/data/<x>/b"
    assert resolve(tree)["b"] == "1/2/3"


CHAIN: dict[str, Any] = {f"a{i}": ref(f"<a{i + 1}>") for i in range(5000)} | {"a5000": 1}
DOUBLED: dict[str, Any] = {"a0": "x" * 100} | {f"a{i + 1}": ref(f"<a{i}><a{i}>") for i in range(60)}
SHARED: dict[str, Any] = {"a0": [1] * 9} | {f"a{i + 1}": [ref(f"<a{i}>")] * 9 for i in range(30)}
COPIED: dict[str, Any] = {"a0": [1] * 9} | {
    f"a{i + 1}": [Tagged("!copy", f"<a{i}>")] * 9 for i in range(30)
}
REFUSED = {
    "to nothing": ({"a": ref("<b>")}, "there is no <b>"),
    "into a single value": ({"a": ref("<b[c]>"), "b": 1}, "there is no"),
    "into a list": ({"a": ref("<b[0]>"), "b": [1]}, "there is no"),
    "to itself": ({"a": ref("<a>")}, "refers to itself"),
    "to one another": ({"a": ref("<b>"), "b": ref("x<a>")}, "refers to itself"),
    "to what holds it": ({"a": {"b": ref("<a>")}}, "refers to itself"),
    "of a mapping within text": ({"a": ref("x<b>"), "b": {}}, "more than a single value"),
    "with a list": ({"a": Tagged("!ref", ["<b>"]), "b": 1}, "takes text"),
    "to an attribute": ({"a": ref("<b.real>"), "b": 1}, "reads an attribute"),
    "a chain": (CHAIN, "more than 100 references"),
    "text that doubles": (DOUBLED, "more than 10,000 characters"),
    "lists that grow": (SHARED, "more than 10,000 values"),
    "copies that grow": (COPIED, "more than 10,000 values"),
    "empty": ({"a": ref("<>")}, "there is no <>"),
    "a tower": ({"a": 9, "b": ref("<a>**<a>**<a>")}, "exponents go to 64"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_references_that_are_refused(kind: str) -> None:
    tree, message = REFUSED[kind]
    with pytest.raises(ConfigError, match=message):
        resolve(tree)
