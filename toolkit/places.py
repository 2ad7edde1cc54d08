"""Where the recipes, plugins and studies that come with the toolkit are.

A checkout has them beside the package. A wheel has the same folders in `toolkit/shipped`.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SHIPPED = PACKAGE / "shipped"


def installed() -> bool:
    """Whether this is a copy that a wheel installed, not a checkout."""
    return SHIPPED.is_dir()


def home() -> Path:
    """The folder that holds `recipes/`, `plugins/` and `tools/studies/`."""
    return SHIPPED if installed() else PACKAGE.parent


def recipes() -> Path:
    """The folder of the recipes."""
    return home() / "recipes"


def plugins() -> Path:
    """The folder of the plugins."""
    return home() / "plugins"


def studies() -> Path:
    """The folder of the studies."""
    return home() / "tools" / "studies"


def extended(file: Path, name: str) -> Path:
    """The configuration that `file` extends.

    Args:
        file: the extending configuration.
        name: what it says after `extends:`; a path from its own folder, or else from the working
            directory or from the recipes, such as `ESC50/hparams/base.yaml`.

    Returns:
        the first that exists; if none does, the one in the file's own folder.
    """
    candidates = [folder / name for folder in (file.parent, Path(), recipes())]
    return next((path for path in candidates if path.is_file()), candidates[0])
