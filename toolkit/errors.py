"""The errors that users see. Each message says what is wrong and names the remedy."""

import difflib
from collections.abc import Iterable, Sequence


class ToolkitError(Exception):
    """Base of every error that a user can solve; it is printed without a traceback."""


class UnknownName(ToolkitError):
    """A registry has no entry of that name."""


class DuplicateName(ToolkitError):
    """Two places register the same name."""


class PluginError(ToolkitError):
    """A plugin could not be imported."""


class ConfigError(ToolkitError):
    """A configuration with an unknown key, a wrong value, or an impossible combination."""


class UnknownKey(ConfigError):
    """A configuration with a key that does not exist."""


class DataError(ToolkitError):
    """Audio or metadata that is missing, unreadable or inconsistent."""


class BackboneError(ToolkitError):
    """Backbone weights that are not available or do not fit."""


class BundleError(ToolkitError):
    """A bundle that is damaged or belongs to another backbone."""


class RunError(ToolkitError):
    """A run that cannot start or continue, or whose results cannot be trusted."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'slots'?"`, or `""` if no known word is similar."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=3, cutoff=0.5)
    return "; did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""


def listing(problems: Sequence[str], limit: int = 20) -> str:
    """The first `limit` problems, one per line, and how many more there are."""
    lines = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


def listed(names: Sequence[str], limit: int = 20) -> str:
    """The first `limit` names in one line, and how many more there are; "none" without any."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*names[:limit], *more]) or "none"


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0]
