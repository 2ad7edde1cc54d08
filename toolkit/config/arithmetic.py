"""Arithmetic in references, such as `!ref <epochs> * 2`: numbers only, and small ones."""

import ast
import operator
import re
from collections.abc import Callable, Mapping

from toolkit.errors import ConfigError

LARGEST = 10**18
"""Limit of every number, also of those on the way to the result."""
LARGEST_EXPONENT = 64

EXPRESSION = re.compile(r"[0-9.eE_+\-*/%() ]{1,200}")
BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: Mapping[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def evaluate(text: str) -> int | float | str:
    """The number that a text computes, or the text itself if it is no arithmetic.

    Raises:
        ConfigError: a number exceeds a limit, or is divided by zero.
    """
    if not EXPRESSION.fullmatch(text):
        return text
    try:
        parsed = ast.parse(text, mode="eval")
    except SyntaxError:
        return text
    value = _value(parsed.body, text)
    return text if value is None else value


def _value(node: ast.expr, text: str) -> int | float | None:
    """The value of a part of the arithmetic `text`; None if it has something else."""
    result: int | float | None = None
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        result = node.value
    elif isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        operand = _value(node.operand, text)
        result = None if operand is None else UNARY[type(node.op)](operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        left, right = _value(node.left, text), _value(node.right, text)
        if left is not None and right is not None:
            result = _computed(node.op, left, right, text)
    if result is not None and not abs(result) <= LARGEST:  # refuses NaN too
        raise ConfigError(f"'{text}' exceeds 10^18, the largest number that a reference computes")
    return result


def _computed(op: ast.operator, left: float, right: float, text: str) -> float:
    if isinstance(op, ast.Pow) and (abs(right) > LARGEST_EXPONENT or (left < 0 and right % 1 != 0)):
        raise ConfigError(
            f"'{text}' raises {left} to the power of {right}; exponents go to {LARGEST_EXPONENT}, "
            "and a negative number needs a whole one"
        )
    try:
        return BINARY[type(op)](left, right)
    except ZeroDivisionError:
        raise ConfigError(f"'{text}' divides by zero") from None
    except OverflowError:
        return float("inf")
