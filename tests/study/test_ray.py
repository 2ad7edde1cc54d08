"""The engine ray gives the same table as the local one; skipped where Ray is not installed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import studies

from toolkit.errors import ConfigError
from toolkit.study.report import tables
from toolkit.study.report.load import Results


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[None]:
    """A cluster on this machine with two cores, whose workers import from this checkout."""
    ray = pytest.importorskip(
        "ray", reason="needs Ray: pip install 'audio-peft-toolkit[ray]'", exc_type=ImportError
    )
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
    )
    yield
    ray.shutdown()


def test_ray_gives_the_same_table(cluster: None, tmp_path: Path) -> None:
    """Two engines, two folders, one failing method; only the records know the engine."""
    recipe = studies.quick_recipe(tmp_path)
    study = studies.study_of(recipe, methods=["linear", "lora", "bitfit"])
    (recipe / "bitfit.fails").touch()
    for engine in ("local", "ray"):
        made = studies.benchmark(study, tmp_path / engine)
        assert len(list(made.run(engine, 2))) == 6
        assert made.failures == 2
    local, ray = (Results.read(tmp_path / engine) for engine in ("local", "ray"))
    pd.testing.assert_frame_equal(tables.methods(local), tables.methods(ray))
    pd.testing.assert_frame_equal(tables.comparisons(local), tables.comparisons(ray))
    assert {record.reason for record in ray.failed} == {record.reason for record in local.failed}
    assert {record.engine for record in ray.records.values()} == {"ray"}
    assert len(studies.executions(recipe)) == 12


def test_without_ray_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also names the engine that is available."""
    monkeypatch.setitem(sys.modules, "ray", None)
    made = studies.benchmark(studies.study_of(studies.quick_recipe(tmp_path)), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"audio-peft-toolkit\[ray\].*--engine local"):
        list(made.run("ray", 1))
