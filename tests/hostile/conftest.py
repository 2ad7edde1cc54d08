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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of every three rows of a table one is always tried; the others with `tools/test --all`."""
    rows = [item for item in items if item.name.startswith("test_refused[")]
    for number, item in enumerate(rows):
        if number % 3:
            item.add_marker(pytest.mark.wide)
