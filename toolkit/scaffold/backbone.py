"""The files of a new family of backbones."""

MODULE = '''"""{title} (authors, arXiv id), in transformers' own class."""

from transformers import UniSpeechConfig, UniSpeechModel

from toolkit.backbones.speech import SpeechSource
from toolkit.registry import BACKBONES
from toolkit.settings import setting


@BACKBONES.register("{name}", paper="your paper", model_type="{name}")
class {title}(SpeechSource):
    """A model of the wav2vec 2.0 kind (replace its classes; docs/how-to/new-backbone.md)."""

    model_class, config_class = UniSpeechModel, UniSpeechConfig
    source: str = setting("owner/model", "hub id, or a folder written by save_pretrained")
'''

TEST = '''"""The plugin keeps the contract of every backbone, with every method."""

from pathlib import Path

import pytest

from toolkit import plugins
from toolkit.registry import PEFT
from toolkit.testing import check_backbone, matrix, tiny_backbone

loaded = plugins.load([Path(__file__).parent])
assert not plugins.report(loaded), plugins.report(loaded)


def test_contract() -> None:
    check_backbone("{name}", methods="linear_probe")


@pytest.mark.parametrize("method", PEFT.names())
def test_no_method_breaks_on_it(method: str) -> None:
    found = matrix.cell(method, "{name}")
    assert found.verdict != "broken", found.reason


def test_roles_lead_to_modules() -> None:
    backbone = tiny_backbone(family="{name}")
    sites = list(backbone.sites("both", "attn.q", "attn.v", "ffn.up", "ffn.down"))
    assert len(sites) == 6 * backbone.depth
'''

FILES = {"{name}.py": MODULE, "test_{name}.py": TEST}
