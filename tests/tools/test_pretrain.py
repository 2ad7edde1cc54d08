"""The pretraining recipe: its command line in smoke mode, its scenes, its table of sources."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from recipe import ROOT

from toolkit import backbones
from toolkit.backbones.ast import TINY

RECIPE = ROOT / "recipes" / "Pretrain"


def part(name: str) -> ModuleType:
    """A module of the recipe."""
    spec = importlib.util.spec_from_file_location(f"pretrain_{name}", RECIPE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def pretrain(work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe's command line."""
    command = [sys.executable, str(RECIPE / "train.py"), "hparams/own_sounds.yaml", *options]
    return subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120)


def test_smoke_run_goes_on_and_leaves_a_backbone(tmp_path: Path) -> None:
    start = time.monotonic()
    options = ["--smoke", "true", "--output_folder", "out", "--noprogressbar", "true"]
    done = pretrain(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    log = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").open()]
    assert log[-1]["step"] == 6 and np.isfinite(log[-1]["held_out_loss"])
    before = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"]
    again = pretrain(tmp_path, *options)
    assert again.returncode == 0 and f"resuming from step {before}" in again.stdout
    made = backbones.create({"name": str(tmp_path / "out" / "backbone")}).load(128)
    embedded = backbones.create({"name": "ast_tiny"}).load(128)
    features = torch.zeros(1, 128, 128)
    with torch.no_grad():
        assert made(features).shape == embedded(features).shape
        assert not torch.equal(made(features), embedded(features))


def test_own_folder_and_its_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = pretrain(tmp_path, "--data_folder", "empty", "--smoke", "true")
    assert refused.returncode != 0 and "fewer than two sound files" in refused.stderr
    unknown = pretrain(tmp_path, "--stepps", "3")
    assert unknown.returncode != 0 and "did you mean 'steps'" in unknown.stderr


def test_scenes_are_endless_seeded_and_know_their_targets() -> None:
    scenes = part("scenes")
    first, again, other = (scenes.scene(seed, 2.0) for seed in (7, 7, 8))
    assert np.array_equal(first.audio, again.audio) and not np.array_equal(first.audio, other.audio)
    heard = 0
    for seed in range(40):
        scene = scenes.scene(seed, 1.0)
        assert np.isfinite(scene.audio).all() and np.abs(scene.audio).max() > 0
        assert scene.present.shape == (len(scenes.FAMILIES),) and 1 <= scene.present.sum() <= 3
        heard = np.maximum(heard, scene.present)
    assert heard.sum() > 15


def test_sources_are_listed_with_their_licences() -> None:
    table = part("sources").packages()
    assert len(table) > 50 and table["package"].is_unique
    assert (table["licence"].str.len() > 2).all()
    assert set(table["kind"]) <= {"speech", "sound", "music"}
    excluded = dict(zip(table["package"], table["exclude"], strict=True))
    assert excluded["openttd-opensfx"], "a file of it is an ESC-10 clip"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "card.md"])
def test_the_embedded_weights_are_there_and_small(name: str) -> None:
    file = TINY / name
    assert 0 < file.stat().st_size <= 6_000_000
