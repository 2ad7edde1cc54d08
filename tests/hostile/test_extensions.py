"""An extender's mistakes and settings that cannot keep their promise: refused in one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import Hostile, check_refused
from programs import ROOT

METHOD = """
import torch
from torch import Tensor, nn

from toolkit.peft.base import PeftMethod, insertion, setting
from toolkit.registry import PEFT


@PEFT.register("mine", paper="none")
class Mine({base}):
    \"\"\"A method.\"\"\"

    {body}
"""
PARALLEL = """def insert(self, backbone):
        for site in self.sites(backbone, "ffn"):
            insertion.parallel(site, "mine", {module})
"""
IMPORTED = ["*__pycache__*"]


def method(body: str, base: str = "PeftMethod") -> Callable[[Path], None]:
    """Write a plugin `mine` whose method has this body."""
    return plugin(METHOD.format(base=base, body=body))


def plugin(text: str) -> Callable[[Path], None]:
    """Write a plugin `mine` of this text."""

    def write(folder: Path) -> None:
        (folder / "mine").mkdir()
        (folder / "mine" / "mine.py").write_text(text)

    return write


def check(name: str, says: list[str], prepare: Callable[[Path], None], status: int = 2) -> Hostile:
    """A plugin that `check-plugin` refuses."""
    return Hostile(name, ["toolkit", "check-plugin", "mine"], says, prepare, status, IMPORTED)


def spec(text: str, *says: str) -> Hostile:
    """Settings of a method that are refused."""
    return Hostile(text, ["toolkit", "describe", "peft", text, "--parameters"], says)


REGISTER = "from toolkit.registry import {0}\n@{0}.register('mine', paper='none')\n"
TABLE = (
    check("no insert", ["'mine' at .*mine.py:9 does not define insert"], method("pass")),
    check(
        "not a method",
        ["registered as a PEFT method and is none", r"class Mine\(PeftMethod\)"],
        method("pass", "nn.Module"),
    ),
    check(
        "inserts nothing",
        ["'mine' inserts nothing", "a linear probe would be trained"],
        method("def insert(self, backbone):\n        pass"),
    ),
    check(
        "wrong width out",
        [r"'mine' fails at blocks\.0\.ffn", "width 48, and 96 are needed"],
        method(PARALLEL.format(module="nn.Linear(site.in_dim, 48)")),
    ),
    check(
        "wrong width in",
        ["RuntimeError", r"'mine' fails at blocks\.0\.ffn"],
        method(PARALLEL.format(module="nn.Linear(7, site.out_dim)")),
    ),
    check(
        "a module that returns a tuple",
        [r"'mine' fails at blocks\.0\.ffn: its module returns a tuple instead of tokens"],
        method(PARALLEL.format(module="nn.MaxPool1d(1, return_indices=True)")),
    ),
    check(
        "does not start at the frozen backbone",
        ["PEFT method 'mine': training does not start at the frozen backbone"],
        method(PARALLEL.format(module="nn.Linear(site.in_dim, site.out_dim)")),
    ),
    check(
        "insert raises",
        ["PEFT method 'mine': KeyError: 'rank'"],
        method("def insert(self, backbone):\n        raise KeyError('rank')"),
    ),
    check("syntax", ["plugin 'mine' .* is broken", "line 1"], plugin("def broken(:\n")),
    check("binary", ["plugin 'mine' .* is broken"], plugin("\x00\x01")),
    check(
        "a backbone that is none",
        ["registered as a backbone and is none"],
        plugin(REGISTER.format("BACKBONES") + "class Mine:\n    'No.'\n"),
    ),
    check(
        "a corpus that is none",
        ["registered as a corpus and is none"],
        plugin(REGISTER.format("CORPORA") + "class Mine:\n    'No.'\n"),
    ),
    check(
        "a corpus without a manifest",
        [r"the corpus 'mine' .* does not define manifest\(\)"],
        plugin(
            "from toolkit.data.manifest import Corpus\n"
            + REGISTER.format("CORPORA")
            + "class Mine(Corpus):\n    'No.'\n"
        ),
    ),
    check(
        "a pipeline without rows",
        [r"the data pipeline 'mine' .* does not define rows\(\)"],
        plugin(
            "from toolkit.features.pipeline import Pipeline\n"
            + REGISTER.format("PIPELINES")
            + "class Mine(Pipeline):\n    'No.'\n    kind = 'fbank'\n"
        ),
    ),
    Hostile("no folder", ["toolkit", "check-plugin", "nowhere"], ["nowhere does not exist"]),
    Hostile(
        "a file for a folder",
        ["toolkit", "check-plugin", "file.py"],
        ["file.py is a file: name the folder of a plugin"],
        lambda folder: (folder / "file.py").write_text(""),
    ),
    *(
        Hostile(
            f"a {kind} that is there",
            ["toolkit", "new-plugin", name, "--kind", kind],
            [f"there is already a {said} '{name}'"],
        )
        for kind, name, said in (
            ("backbone", "wav2vec2", "backbone"),
            ("corpus", "esc50", "corpus"),
            ("pipeline", "fbank", "data pipeline"),
        )
    ),
    *(
        Hostile(
            f"a {kind} whose name is none",
            ["toolkit", "new-plugin", "../out", "--kind", kind],
            ["cannot name a plugin"],
        )
        for kind in ("backbone", "corpus", "pipeline", "augmentation")
    ),
    spec("lora:alpha=0", "'alpha' must be above 0"),
    spec("lora:alpha=.inf", "'alpha' must be a finite number"),
    spec("lora:alpha=.nan", "'alpha' must be above 0, not nan"),
    spec("lora:dropout=1", "'dropout' must be below 1"),
    spec("adalora:alpha=0", "'alpha' must be above 0"),
    spec("adalora:warmup=0.7,final=0.7", "at most 1 together"),
    spec("adapter:scale=0", "'scale' must not be 0: nothing would be trained"),
    spec("adapter:scale=.nan", "'scale' must be a finite number"),
    spec("adaptformer:scale=0", "'scale' must not be 0"),
    spec("adapter_plus:drop_path=1", "'drop_path' must be below 1"),
    spec("fact:scale=-.inf", "'scale' must be a finite number"),
    spec("vera:d_initial=0", "'d_initial' must not be 0"),
    spec("lora_plus:ratio=0", "'ratio' must be above 0"),
    spec("peer:pool_lr_mult=0", "'pool_lr_mult' must be above 0"),
    spec("soft_moa:phi_init=xavir", "did you mean 'xavier'"),
    spec("soft_moa:slots=tokens", "'slots' must be int or 'tokens/experts'"),
    spec("soft_moa:slots=0", "'slots' must be at least 1"),
)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)
