#!/usr/bin/env python
"""Run a study: compare methods on corpora over folds and seeds.

    python tools/benchmark.py STUDY.yaml ...              as `toolkit study run STUDY.yaml ...`
    python tools/benchmark.py STUDY.yaml --timings ...    as `toolkit study time STUDY.yaml ...`

It takes the options of these commands, which `--help` lists.
"""

import sys
from collections.abc import Sequence

from toolkit.cli.main import main

TIMINGS = "--timings"


def command(arguments: Sequence[str]) -> list[str]:
    """The arguments of `toolkit` that do what these arguments ask for."""
    verb = "time" if TIMINGS in arguments else "run"
    return ["study", verb, *(word for word in arguments if word != TIMINGS)]


if __name__ == "__main__":
    main(command(sys.argv[1:]))
