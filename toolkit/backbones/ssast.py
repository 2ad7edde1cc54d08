"""SSAST's own checkpoints (Gong et al., arXiv:2110.09784) in transformers' class of AST.

The authors' files hold a distilled DeiT of timm; names and shapes are those of `ASTModel` in
github.com/YuanGongND/ssast, src/models/ast_models.py.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from toolkit.backbones.ast import ASTBackbone, ASTSource
from toolkit.backbones.checkpoint import FAULTS, LARGEST_NUMBER
from toolkit.backbones.weights import require_finite
from toolkit.errors import BackboneError
from toolkit.features.spec import FbankSpec
from toolkit.registry import BACKBONES
from toolkit.settings import setting

ENCODER = "module.v."
NAME = re.compile(r"(?:module\.v\.(blocks\.\d+\.)?)?(.*)")  # block, part
BLOCK = re.compile(r"module\.v\.blocks\.(\d+)\.")
HEAD_WIDTH = 64  # of every size of DeiT
EPSILON = 1e-6  # of timm's layer norms; AST's own configuration says 1e-12
NAMES = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Parts of the authors' model, and of a block of it -> those of transformers'."""


@BACKBONES.register("ssast", paper="arXiv:2110.09784")
class SSAST(ASTSource):
    """Self-supervised AST (SSAST-Patch), from a file that its authors published."""

    source: str = setting("", "a .pth file of SSAST-Patch-{Tiny,Small,Base}-400")

    def spec(self, max_length: int) -> FbankSpec:
        """Log-mel frames; the file says how many mel bands."""
        config = self._shortened(configuration(self._read(), self.source))
        return self.feature_spec(config, ASTFeatureExtractor(), max_length)

    def read(self, max_length: int) -> ASTBackbone:
        """The encoder of the authors' file, as an AST of transformers."""
        tensors = self._read()
        config = configuration(tensors, self.source)
        self._shortened(config)  # refuses a depth that it does not have
        self._without_weights(config)  # refuses sizes that no memory holds
        require_finite(tensors, self.source)
        model = ASTModel(config)
        try:
            model.load_state_dict(converted(tensors))
        except RuntimeError as error:
            raise BackboneError(
                f"{self.source} is not a whole SSAST ({str(error).splitlines()[-1].strip()}): "
                "fetch it again from github.com/YuanGongND/ssast"
            ) from None
        return self.wrap(self._cut(model).eval(), ASTFeatureExtractor(), max_length)

    def architecture(self, max_length: int) -> ASTBackbone:
        """The backbone on the meta device; the file says its size."""
        config = self._shortened(configuration(self._read(), self.source))
        model = self._without_weights(config)
        with torch.device("meta"):
            return self.wrap(model.eval(), ASTFeatureExtractor(), max_length)

    def _read(self) -> dict[str, Tensor]:
        """The file's tensors, mapped into memory where the file's format allows it."""
        file = Path(self.source)
        try:
            mapped = zipfile.is_zipfile(file)
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except FAULTS:  # `weights_only` refuses a pickle with more in it than tensors
            tensors = None
        if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
            raise BackboneError(
                f"'{self.source}' is not a file of tensors: name one of SSAST's .pth files with "
                "`--backbone.source PATH`"
            )
        shape = tensors.get(f"{ENCODER}patch_embed.proj.weight", torch.zeros(0)).shape
        if len(shape) != 4 or shape[2] != shape[3] or f"{ENCODER}dist_token" not in tensors:
            raise BackboneError(
                f"'{self.source}' is not an SSAST with square patches and a distillation token: "
                "use an SSAST-Patch checkpoint"
            )
        return tensors


def configuration(tensors: Mapping[str, Tensor], source: str) -> ASTConfig:
    """The configuration of transformers' AST that fits a checkpoint's shapes.

    Args:
        tensors: of the checkpoint, `module.v.` being the encoder.
        source: its file, for messages.

    Raises:
        BackboneError: a tensor that says a size is missing, or says an impossible one.
    """
    width, _, patch, _ = tensors[f"{ENCODER}patch_embed.proj.weight"].shape
    blocks = {m.group(1) for name in tensors if (m := BLOCK.match(str(name)))}
    try:
        inner = len(tensors[f"{ENCODER}blocks.0.mlp.fc1.weight"])
        bins, frames = (int(tensors[f"module.p_input_{axis}dim"]) for axis in "ft")
    except (LookupError, RuntimeError, TypeError, ValueError):
        inner = bins = frames = 0
    sizes = (width, patch, inner, bins, frames)
    if width % HEAD_WIDTH or not all(0 < size <= LARGEST_NUMBER for size in sizes):
        raise BackboneError(
            f"{source} is not a whole SSAST (its sizes are missing or impossible): fetch it again "
            "from github.com/YuanGongND/ssast"
        )
    return ASTConfig(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=inner,
        num_mel_bins=bins,
        max_length=frames,
        patch_size=patch,
        frequency_stride=patch,  # patches do not overlap while it is pretrained
        time_stride=patch,
        layer_norm_eps=EPSILON,
    )


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors by transformers' names; the joint q, k, v projection is cut in three.

    Args:
        tensors: of the checkpoint; the heads of pretraining and of timm's DeiT are left out.
    """
    found: dict[str, Tensor] = {}
    for path, tensor in tensors.items():
        block, part = NAME.fullmatch(path).groups("")  # type: ignore[union-attr]  # always matches
        if not path.startswith(ENCODER) or part.startswith("head"):
            continue
        prefix = block.replace("blocks.", "layers.")
        stem, _, kind = part.rpartition(".")
        if stem == "attn.qkv":
            for letter, third in zip("qkv", tensor.chunk(3), strict=False):  # loading sees the rest
                found[f"{prefix}attention.{letter}_proj.{kind}"] = third
        elif part in NAMES:
            found[NAMES[part]] = tensor
        elif stem in NAMES:
            found[f"{prefix}{NAMES[stem]}.{kind}"] = tensor
        else:
            found[path] = tensor  # unknown: loading will refuse it
    return found
