"""Fixtures for all tests: real recordings, reference values, caches, and no access to the hub."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# torch reads this; tests run in several processes, whose threads would slow one another down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.pop("TOOLKIT_PLUGINS", None)
SHARED = Path(__file__).parents[1] / "shared"
GOLDEN = Path(os.environ.get("TOOLKIT_TEST_GOLDEN", SHARED / "golden"))


def pytest_configure() -> None:
    """Let hypothesis ask any module for its file without importing SpeechBrain's lazy modules."""
    from speechbrain.utils.importutils import LazyModule

    LazyModule.__file__ = None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real recordings: `$TOOLKIT_TEST_DATA`, or else `../shared/data`."""
    folder = Path(os.environ.get("TOOLKIT_TEST_DATA", SHARED / "data"))
    if not (folder / "ESC-10" / "meta" / "esc50.csv").is_file():
        pytest.skip(f"real recordings are not in {folder}: set TOOLKIT_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with reference values: `$TOOLKIT_TEST_GOLDEN`, or else `../shared/golden`."""
    if not (GOLDEN / "index.json").is_file():
        pytest.skip(f"no reference values in {GOLDEN}: set TOOLKIT_TEST_GOLDEN to their folder")
    return GOLDEN


@pytest.fixture(scope="session")
def programs() -> Path:
    """A folder with the programs `python`, `toolkit` and `torchrun`, which start at once."""
    from programs import warm_programs

    return warm_programs()


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for fixtures that are shared by tests, so that the user's own is never used."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TOOLKIT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate feature cache for every test and the processes it starts."""
    folder = tmp_path / "toolkit-cache"
    monkeypatch.setenv("TOOLKIT_CACHE", str(folder))
    return folder
