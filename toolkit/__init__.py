"""Adapt frozen audio transformers with a few thousand parameters, and compare ways of doing so.

    import toolkit

    backbone = toolkit.load_backbone("ast_tiny", max_length=248)
    model = toolkit.adapt(backbone, "soft_moa", num_classes=50, num_experts=7)

Names are imported when they are first used, so that `import toolkit` is quick; the first one also
finds the plugins (see `toolkit.plugins`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.adaptation import adapt as adapt
    from toolkit.backbones import load_backbone as load_backbone
    from toolkit.backbones.base import Backbone as Backbone
    from toolkit.backbones.own import RoleMap as RoleMap
    from toolkit.bundle import Bundle as Bundle
    from toolkit.bundle import load_bundle as load_bundle
    from toolkit.bundle import save_bundle as save_bundle
    from toolkit.description import describe as describe
    from toolkit.description import list_registered as list_registered
    from toolkit.errors import ToolkitError as ToolkitError
    from toolkit.fewer_tokens.patchout import Patchout as Patchout
    from toolkit.inference.clips import read_clips as read_clips
    from toolkit.inference.embed import embed as embed
    from toolkit.inference.predict import Prediction as Prediction
    from toolkit.inference.predict import predict as predict
    from toolkit.model import AudioClassifier as AudioClassifier

__version__ = "0.2.0"

_HOMES = {
    "AudioClassifier": "toolkit.model",
    "Backbone": "toolkit.backbones.base",
    "Bundle": "toolkit.bundle",
    "Patchout": "toolkit.fewer_tokens.patchout",
    "Prediction": "toolkit.inference.predict",
    "RoleMap": "toolkit.backbones.own",
    "ToolkitError": "toolkit.errors",
    "adapt": "toolkit.adaptation",
    "describe": "toolkit.description",
    "embed": "toolkit.inference.embed",
    "list_registered": "toolkit.description",
    "load_backbone": "toolkit.backbones",
    "load_bundle": "toolkit.bundle",
    "predict": "toolkit.inference.predict",
    "read_clips": "toolkit.inference.clips",
    "save_bundle": "toolkit.bundle",
}
"""Public name -> the module that defines it."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    import_module("toolkit.plugins").discover_and_report()
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # so that this runs once per name
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
