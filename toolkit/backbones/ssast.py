"""SSAST's own checkpoints (Gong et al., arXiv:2110.09784) in transformers' class of AST.

The authors' files hold a distilled DeiT of timm; names and shapes are those of `ASTModel` in
github.com/YuanGongND/ssast, src/models/ast_models.py.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from toolkit.backbones.ast import ASTBackbone, ASTSource
from toolkit.errors import BackboneError
from toolkit.features.spec import FbankSpec
from toolkit.registry import BACKBONES
from toolkit.settings import setting

ENCODER = "module.v."
NAME = re.compile(r"(?:module\.v\.(blocks\.\d+\.)?)?(.*)")  # block, part
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
        config = configuration(self._read())
        return self.feature_spec(config, ASTFeatureExtractor(), max_length)

    def read(self, max_length: int) -> ASTBackbone:
        """The encoder of the authors' file, as an AST of transformers."""
        tensors = self._read()
        model = ASTModel(configuration(tensors))
        try:
            model.load_state_dict(converted(tensors))
        except RuntimeError as error:
            raise BackboneError(
                f"{self.source} is not a whole SSAST ({str(error).splitlines()[-1].strip()}): "
                "fetch it again from github.com/YuanGongND/ssast"
            ) from None
        return self.wrap(model.eval(), ASTFeatureExtractor(), max_length)

    def architecture(self, max_length: int) -> ASTBackbone:
        """The backbone on the meta device; the file says its size."""
        config = configuration(self._read())
        with torch.device("meta"):
            return self.wrap(ASTModel(config).eval(), ASTFeatureExtractor(), max_length)

    def _read(self) -> dict[str, Tensor]:
        """The file's tensors, mapped into memory where the file's format allows it."""
        file = Path(self.source)
        try:
            mapped = zipfile.is_zipfile(file)
            tensors = dict(torch.load(file, map_location="cpu", weights_only=True, mmap=mapped))
        except (OSError, RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError):
            raise BackboneError(
                f"'{self.source}' is not a file of tensors: name one of SSAST's .pth files with "
                "`--backbone.source PATH`"
            ) from None
        shape = getattr(tensors.get(f"{ENCODER}patch_embed.proj.weight"), "shape", None)
        if shape is None or shape[-2] != shape[-1] or f"{ENCODER}dist_token" not in tensors:
            raise BackboneError(
                f"'{self.source}' is not an SSAST with square patches and a distillation token: "
                "use an SSAST-Patch checkpoint"
            )
        return tensors


def configuration(tensors: Mapping[str, Tensor]) -> ASTConfig:
    """The configuration of transformers' AST that fits a checkpoint's shapes.

    Args:
        tensors: of the checkpoint, `module.v.` being the encoder.
    """
    width, _, patch, _ = tensors[f"{ENCODER}patch_embed.proj.weight"].shape
    blocks = {m.group(1) for name in tensors if (m := re.match(r"module\.v\.blocks\.(\d+)", name))}
    return ASTConfig(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=len(tensors[f"{ENCODER}blocks.0.mlp.fc1.weight"]),
        num_mel_bins=int(tensors["module.p_input_fdim"]),
        max_length=int(tensors["module.p_input_tdim"]),
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
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{prefix}attention.{letter}_proj.{kind}"] = third
        elif part in NAMES:
            found[NAMES[part]] = tensor
        elif stem in NAMES:
            found[f"{prefix}{NAMES[stem]}.{kind}"] = tensor
        else:
            found[path] = tensor  # unknown: loading will refuse it
    return found
