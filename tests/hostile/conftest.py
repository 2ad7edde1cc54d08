"""The programs that hostile commands are run with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import warm_programs


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the programs `toolkit` and `python`."""
    with warm_programs(tmp_path_factory.mktemp("programs")) as folder:
        yield folder
