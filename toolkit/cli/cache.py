"""Look at the caches on disk, and remove them: `toolkit cache list` and `toolkit cache clear`."""

import argparse
from datetime import datetime
from pathlib import Path

from toolkit.cli.parser import Commands, Parser
from toolkit.errors import PlaceError


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the commands `cache list` and `cache clear`."""
    group = commands.add_parser("cache", help="caches of features and states on disk")
    verbs = group.add_subparsers(required=True, metavar="list|clear")
    where = Parser(add_help=False, parents=[common])
    where.add_argument(
        "--cache_folder", type=Path, metavar="DIR",
        help="another folder than $TOOLKIT_CACHE or the user's cache folder",
    )  # fmt: skip
    listed = verbs.add_parser("list", parents=[where], help="their sizes and last uses")
    listed.set_defaults(run=list_caches)
    clear = verbs.add_parser("clear", parents=[where], help="remove those that nobody uses")
    clear.set_defaults(run=clear_caches)


def list_caches(options: argparse.Namespace) -> None:
    """`toolkit cache list`."""
    from toolkit.cli.console import print_table
    from toolkit.features.cache_folder import caches

    root = _root(options)
    found = caches(root)
    rows = [
        (
            str(cache.folder.relative_to(root)),
            "unfinished" if cache.unfinished else cache.kind.name,
            _megabytes(cache.size),
            f"{datetime.fromtimestamp(cache.used):%Y-%m-%d %H:%M}",
            "in use" if cache.in_use() else "",
        )
        for cache in reversed(found)
    ]
    print_table(
        rows,
        lambda *cells: "  ".join(cells).rstrip(),
        ("folder", "kind", "size", "last used", ""),
        title=f"{root}: {_megabytes(sum(cache.size for cache in found))}",
    )


def clear_caches(options: argparse.Namespace) -> None:
    """`toolkit cache clear`."""
    from toolkit.features.cache_folder import caches

    root = _root(options)
    freed = kept = 0
    refused: list[PlaceError] = []
    for cache in caches(root):
        try:
            if cache.remove():
                freed += cache.size
            else:
                kept += 1
        except PlaceError as error:  # the others are removed all the same
            refused.append(error)
    print(f"{_megabytes(freed)} removed from {root}")
    if kept:
        print(f"{kept} in use, and kept")
    if refused:
        raise PlaceError("\n".join(map(str, refused)))


def _root(options: argparse.Namespace) -> Path:
    from toolkit.features.cache import default_cache_folder

    chosen: Path | None = options.cache_folder
    if chosen is None:
        return default_cache_folder()
    if not chosen.is_dir():
        raise PlaceError(f"{chosen} is not a folder: name that of the caches, or leave it out")
    return chosen


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
