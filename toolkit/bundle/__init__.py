"""Bundles: what was learned, small and reusable.

A bundle is a folder with `bundle.json` (settings, task, class names, the backbone's name and
fingerprint) and `weights.safetensors` (what training changed, by lasting names). Nothing in it is
executed.
"""

from toolkit.bundle.info import DESCRIPTION, WEIGHTS, BundleInfo, Origin, ToolChange
from toolkit.bundle.load import Bundle, load_bundle
from toolkit.bundle.save import save_bundle

__all__ = [
    "DESCRIPTION", "WEIGHTS", "Bundle", "BundleInfo", "Origin", "ToolChange", "load_bundle",
    "save_bundle",
]  # fmt: skip
