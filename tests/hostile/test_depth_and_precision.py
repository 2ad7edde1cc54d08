"""Depths, precisions and types of weights that no backbone has, on the command line and in
bundles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import rewrite_bundle, whole_bundle
from hostile import Hostile, check_refused
from programs import ROOT

from toolkit.data.corpora.miniature import write_tones
from toolkit.registry import BACKBONES

TRAIN = [
    "toolkit", "train", "ESC50", "lora", "--backbone", "ast_tiny", "--max_length", "64",
    "--data_folder", "none",
]  # fmt: skip

VALUES = [
    Hostile(" ".join(words), [*TRAIN, *words], [says])
    for words, says in (
        (["--backbone.depth", "0"], "'depth' must be at least 1"),
        (["--backbone.depth", "-3"], "'depth' must be at least 1"),
        (["--backbone.depth", "1.5"], "'depth' must be int or none"),
        (["--backbone.depth", "true"], "'depth' must be int or none"),
        (["--backbone.depth", "all"], "'depth' must be int or none"),
        (["--backbone.depth", "[1, 2]"], "'depth' must be int or none"),
        (["--backbone.depht", "3"], "unknown setting 'backbone.depht'; did you mean 'depth'"),
        (["--depth", "3"], "unknown key 'depth'"),
        (["--backbone.weights", "int4"], r"'weights' must be 'float32' \| 'int8'"),
        (["--backbone.weights", "bf16"], "'weights' must be"),
        (["--backbone.weights", "8"], "'weights' must be"),
        (["--backbone.weights", "null"], "'weights' must be"),
        (["--precision", "atuo"], "'precision' must be one of .*did you mean 'auto'"),
        (["--precision", "int8"], "'precision' must be one of"),
        (["--precision", "16"], "'precision' must be one of"),
        (["--precision", "null"], "'precision' must be one of"),
        (["--precision", "[auto]"], "'precision' must be one of"),
        (["--precision", ""], "--precision is empty"),
        (["--eval_precision", "half"], "'eval_precision' must be one of"),
        (["--eval_precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
        (["--compile", "auto"], "'compile' must be bool"),
    )
]


def stages(folder: Path) -> None:
    """A checkpoint of CLAP with one block in each of two stages."""
    source = BACKBONES.get("clap")
    model = source.model_class(source.config_class(**source.tiny_config, **source.options))
    model.save_pretrained(folder / "clap")
    source.extractor_class(**source.tiny_extractor).save_pretrained(folder / "clap")


def bundle(**settings: Any) -> Callable[[Path], object]:
    """A bundle whose backbone has other settings, and a sound."""

    def prepare(folder: Path) -> None:
        backbone = {"name": "ast_tiny", "stride": None, **settings}
        rewrite_bundle(whole_bundle(folder), {"backbone": backbone})
        write_tones({folder / "clip.wav": 0})

    return prepare


PREDICT = ["toolkit", "predict", "bundle", "clip.wav"]
CHECKPOINTS = [
    Hostile(
        "more blocks than ast_tiny has",
        ["toolkit", "train", "ESC50", "lora", "--backbone", "ast_tiny", "--backbone.depth", "7"],
        ["'depth' 7 is more than the 6 blocks of .*ast_tiny", "--backbone.depth 6` or less"],
        leaves=["results*"],
    ),
    Hostile(
        "a stage of CLAP left out",
        ["toolkit", "train", "ESC50", "lora", "--backbone", "./clap", "--backbone.depth", "1"],
        ["ends before the last stage of clap", "--backbone.depth 2` or more"],
        prepare=stages,
        leaves=["results*"],
    ),
    Hostile("bundle of another depth", PREDICT, ["trained on another backbone"], bundle(depth=5)),
    Hostile("bundle of too many blocks", PREDICT, ["more than the 6 blocks"], bundle(depth=10**9)),
    Hostile("bundle of no blocks", PREDICT, ["'depth' must be at least 1"], bundle(depth=0)),
    Hostile("bundle whose depth is text", PREDICT, ["'depth' must be int"], bundle(depth="6")),
    Hostile("bundle of odd weights", PREDICT, ["'weights' must be"], bundle(weights="int2")),
    Hostile("bundle of weights in a list", PREDICT, ["'weights' must be"], bundle(weights=[])),
]


@pytest.mark.parametrize("row", [*VALUES, *CHECKPOINTS], ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)
