"""Pretrain the small AST, or continue any fbank backbone on a folder of sounds.

    python -m tools.pretrain fetch SOURCES               download recordings from Debian packages
    python -m tools.pretrain check SOURCES EVALUATION    look for evaluation recordings in them
    python -m tools.pretrain build SOURCES POOL          compute features and teachers' targets
    python -m tools.pretrain train hparams/ast_tiny.yaml --pool POOL

    python -m tools.pretrain train hparams/own_sounds.yaml --data_folder FOLDER
    python -m tools.pretrain train hparams/own_sounds.yaml --smoke true

Run it from the root of a checkout. `train` accepts every key of its configuration as an option. It
stops at the last step, after `piece_hours` or when it is interrupted; start it again to continue
from the checkpoint. Every `probe_minutes` it evaluates itself on clips that are held out from
training, and writes usable weights.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.program import Program


def main(arguments: Sequence[str]) -> None:
    """Run one command; `Program` says how it ends."""
    with Program(continues=True):
        _run(_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    match options.command:
        case "fetch":
            from .sources import fetch

            fetch(options.sources)
        case "check":
            from .fingerprints import matches

            for source, evaluation, count in matches(options.sources, options.evaluation):
                print(f"{source}\t{evaluation}\t{count}", flush=True)
        case "build":
            from .pool import build

            build(options.sources, options.pool, options.workers, options.scale)
        case "train":
            from .train import train

            train([options.hparams, *options.settings])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sources = argparse.ArgumentParser(add_help=False)
    sources.add_argument("sources", type=Path, help="folder of the downloaded recordings")
    commands.add_parser("fetch", parents=[sources], help="download the recordings")
    check = commands.add_parser("check", parents=[sources], help="look for evaluation recordings")
    check.add_argument("evaluation", type=Path, help="folder of the evaluation recordings")
    build = commands.add_parser("build", parents=[sources], help="build the pool")
    build.add_argument("pool", type=Path, help="folder to write")
    build.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    build.add_argument("--scale", type=float, default=1.0, help="size of the pool (%(default)s)")
    train = commands.add_parser("train", help="pretrain, or continue")
    train.add_argument("hparams", help="configuration, such as hparams/own_sounds.yaml")
    train.add_argument("settings", nargs=argparse.REMAINDER, help="--key value ...")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
