"""Which hostile commands are always run."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of every three rows of a table one is always tried; the others with `tools/test --all`."""
    rows = [item for item in items if item.name.startswith("test_refused[")]
    for number, item in enumerate(rows):
        if number % 3:
            item.add_marker(pytest.mark.wide)
