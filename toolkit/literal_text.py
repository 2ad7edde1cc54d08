"""Names in pictures, drawn as they are written."""


def literal(name: str) -> str:
    r"""A name that matplotlib draws as it is: `$a$` is no formula, and line breaks are spaces.

    Bytes of a file name that are not text become question marks.
    """
    text = name.encode("utf-8", "replace").decode("utf-8")
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown.replace("$", r"\$")
