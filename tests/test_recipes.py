"""Every configuration of the recipes and plugins, through the real command line in debug mode."""

import json
from pathlib import Path

import pytest
from recipe import ROOT, run

from toolkit.registry import PEFT

NOT_METHODS = {"base.yaml", "embedded.yaml"}
CONFIGURATIONS = sorted(
    file
    for pattern in ("recipes/ESC50/hparams/*.yaml", "plugins/*/*.yaml")
    for file in ROOT.glob(pattern)
    if file.name not in NOT_METHODS
)


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_debug_run(
    file: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(shared_cache))
    done = run(file, "--debug", "--batch_size", "8", "--output_folder", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out-debug" / "result.json").read_text())
    assert result["parameters"]["method"] > 0 and result["embedded"]
    assert (tmp_path / "out-debug" / "bundle" / "weights.safetensors").is_file()


def test_every_method_has_a_configuration() -> None:
    names = {
        line.split("name:")[1].split(",")[0].strip(" }")
        for file in CONFIGURATIONS
        for line in file.read_text().splitlines()
        if "name:" in line and not line.startswith("#")
    }
    assert set(PEFT.names()) - {"ssf"} <= names
