"""`toolkit new-plugin`: the files of a new PEFT method, which work as they stand."""

import keyword
import re
from importlib.util import find_spec
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.files import handed_over
from toolkit.registry import PEFT

METHOD = '''"""{title}: one sentence that says what it does (authors, arXiv id, equation)."""

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.peft.base import PeftMethod, Placement, insertion, setting
from toolkit.registry import PEFT


@PEFT.register("{name}", paper="your paper")
class {title}(PeftMethod):
    """{title}: y = gamma * x behind each sublayer (replace this with your method)."""

    placement: Placement = setting("both", "which sublayers: mhsa, ffn or both")

    def insert(self, backbone: Backbone) -> None:
        """One module per site. Other places: insertion.parallel; other roles: backbones/base.py."""
        for site in self.sites(backbone, self.placement):
            insertion.after(site, "{name}", Scale(site.out_dim))


class Scale(nn.Module):
    """`gamma * x`; an identity at the start, so that training begins at the frozen backbone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.gamma * x
'''

CONFIG = """# {title}: toolkit train ESC50 {folder}/{name}.yaml
extends: ESC50/hparams/base.yaml
lr: 0.005
peft: {{name: {name}, placement: both}}
"""

TEST = '''"""The plugin keeps the contract of every PEFT method, and does what its paper says."""

from pathlib import Path

import torch

from toolkit import plugins
from toolkit.testing import check_method, tiny_backbone

loaded = plugins.load([Path(__file__).parent])
assert not plugins.report(loaded), plugins.report(loaded)


def test_contract() -> None:
    check_method("{name}")


def test_parameter_count() -> None:
    from toolkit.registry import PEFT

    backbone = tiny_backbone()
    PEFT.create({{"name": "{name}", "final_norm": False}}).apply(backbone)
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert trained == backbone.depth * 2 * backbone.dim


def test_scale_by_hand() -> None:
    from toolkit_plugins.{name}.{name} import Scale

    module = Scale(3)
    with torch.no_grad():
        module.gamma.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert module(torch.tensor([[1.0, 1.0, 2.0]])).tolist() == [[1.0, 2.0, 6.0]]
'''


def new_plugin(name: str, place: Path) -> list[Path]:
    """Write a plugin's method, configuration and test.

    Args:
        name: the method's name, a Python identifier in lower case.
        place: the directory of plugins; a folder `name` is made in it.

    Returns:
        the files written.

    Raises:
        ConfigError: not a name, or one that is taken.
        PlaceError: the folder is already there.
    """
    taken = keyword.iskeyword(name) or name in ("true", "false", "null")  # in Python and in YAML
    if taken or not re.fullmatch("(?!test_|conftest)[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{name!r} cannot name a plugin; use lower-case letters, digits and _")
    if find_spec(name) is not None:
        raise ConfigError(f"there is already a Python package '{name}'; choose another name")
    if name in PEFT.names():
        raise ConfigError(f"there is already a PEFT method '{name}' at {PEFT.peek(name).origin}")
    folder = place / name
    values = {
        "name": name,
        "title": "".join(part.capitalize() for part in name.split("_")),
        "folder": place / name,
    }
    files = {f"{name}.py": METHOD, f"{name}.yaml": CONFIG, f"test_{name}.py": TEST}
    with handed_over(folder) as made:
        for file, template in files.items():
            (made / file).write_text(template.format(**values), encoding="utf-8")
    return [folder / file for file in files]
