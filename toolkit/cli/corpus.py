"""Look at a corpus on disk: `toolkit corpus check` and `toolkit corpus stats`."""

import argparse
from pathlib import Path

from toolkit.cli.parser import Commands, Parser


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the commands `corpus check` and `corpus stats`."""
    group = commands.add_parser("corpus", help="look at a corpus on disk")
    verbs = group.add_subparsers(required=True, metavar="check|stats")
    where = Parser(add_help=False, parents=[common])
    where.add_argument("folder", type=Path, metavar="PATH", help="a folder, or a table of clips")
    where.add_argument(
        "--as",
        dest="corpus",
        required=True,
        metavar="NAME[:setting=value,...]",
        help="as which corpus (`toolkit list corpus`); your own folder or table: folder",
    )

    check = verbs.add_parser("check", parents=[where], help="whether it is complete and correct")
    check.set_defaults(run=check_folder)
    stats = verbs.add_parser("stats", parents=[where], help="numbers of clips, durations, rates")
    stats.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="draw them too")
    stats.set_defaults(run=print_statistics)


def check_folder(options: argparse.Namespace) -> None:
    """`toolkit corpus check PATH --as NAME`."""
    from toolkit.config import parse_spec
    from toolkit.data.survey import check_corpus
    from toolkit.registry import CORPORA

    corpus = CORPORA.create(parse_spec(options.corpus, CORPORA))
    print("\n".join(check_corpus(corpus, options.folder)))


def print_statistics(options: argparse.Namespace) -> None:
    """`toolkit corpus stats PATH --as NAME`."""
    from toolkit.config import parse_spec
    from toolkit.data.survey import picture, require_picture, survey
    from toolkit.files import errors_name
    from toolkit.registry import CORPORA

    if options.output is not None:
        require_picture(options.output)
    manifest = CORPORA.create(parse_spec(options.corpus, CORPORA)).manifest(options.folder)
    tables = survey(manifest)
    for name in ("totals", "classes", "durations", "rates"):
        print(f"{name}\n{tables[name].to_string(index=False)}\n")
    if options.output is not None:
        with errors_name(options.output):
            picture(tables, manifest.corpus).savefig(options.output)
        print(f"wrote {options.output}")
