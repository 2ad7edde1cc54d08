"""How a check fails."""


def require(kept: object, otherwise: str) -> None:
    """Fail a check, unless what it asks for is kept; `python -O` would leave an `assert` out.

    Args:
        kept: true or false.
        otherwise: what is wrong.

    Raises:
        AssertionError: it is false.
    """
    if not kept:
        raise AssertionError(otherwise)
