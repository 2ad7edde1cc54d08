"""The Audio Spectrogram Transformer (Gong et al., arXiv:2104.01778), in transformers' own class."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel
from transformers.masking_utils import create_bidirectional_mask

from toolkit.backbones.base import Backbone, numbered, unwrapped
from toolkit.backbones.extractor import SAMPLE_RATES, Derived, Ignored, Number, OneOf
from toolkit.backbones.stock import StockSource
from toolkit.errors import ConfigError
from toolkit.features.spec import FbankSpec
from toolkit.registry import BACKBONES
from toolkit.settings import setting

HUB_ID = "MIT/ast-finetuned-audioset-10-10-0.4593"
TINY = Path(__file__).with_name("ast_tiny")
ROLES = {
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.o": "attention.o_proj",
    "ffn.up": "mlp.fc1",
    "ffn.down": "mlp.fc2",
    "mhsa": "attention",
    "ffn": "mlp",
    "norm.mhsa": "layernorm_before",
    "norm.ffn": "layernorm_after",
}


class ASTBackbone(Backbone):
    """AST behind roles; tokens are CLS, distillation, then patches in frequency-major order."""

    splits_blocks = True

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn normalised log-mel frames [B, T, F] into tokens [B, 2 + patches, d].

        Lengths are ignored: AST was trained on padded clips without a mask.
        """
        tokens: Tensor = self.model(input_values=features).last_hidden_state
        return tokens

    def resume(self, tokens: Tensor, lengths: Tensor | None, block: int) -> Tensor:
        """Tokens through the upper blocks, each of which sees all of them."""
        config: Any = self.model.config
        mask = create_bidirectional_mask(config, tokens, None)
        return self.through_blocks(tokens, block, attention_mask=mask)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (f, t) behind the special tokens."""
        config: Any = self.model.config
        sizes = (config.num_mel_bins, config.max_length)
        strides = (config.frequency_stride, config.time_stride)
        f, t = (
            (size - config.patch_size) // stride + 1
            for size, stride in zip(sizes, strides, strict=True)
        )
        return f, t

    @property
    def heads(self) -> int:
        """Heads of the attention."""
        config: Any = self.model.config
        count: int = config.num_attention_heads
        return count

    def attend(self, block: int, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attention and its residual."""
        layer: Any = unwrapped(self.site(block, "block").module)
        attended: Tensor = layer.attention(layer.layernorm_before(tokens), bias)[0]
        return tokens + layer.dropout(attended)

    def feed(self, block: int, tokens: Tensor) -> Tensor:
        """Feed-forward and its residual."""
        layer: Any = unwrapped(self.site(block, "block").module)
        fed: Tensor = layer.mlp(layer.layernorm_after(tokens))
        return tokens + layer.dropout(fed)

    @torch.no_grad()
    def zero_positions(self) -> None:
        """Set the position table to zero, including the rows of the special tokens."""
        self.model.get_parameter("embeddings.position_embeddings").zero_()


class ASTSource(StockSource):
    """Base of the sources of an AST; without a saved extractor, AudioSet's statistics are used."""

    features = FbankSpec
    model_class, config_class, extractor_class = ASTModel, ASTConfig, ASTFeatureExtractor
    heads = ("classifier.",)
    extractor_keys = {
        "sampling_rate": SAMPLE_RATES,
        "num_mel_bins": Derived(lambda said, config: config.num_mel_bins),
        "do_normalize": OneOf(True, False),
        "mean": Number(-1e4, 1e4),
        "std": Number(1e-4, 1e4),
        "feature_size": OneOf(1),
        "max_length": Ignored(),  # the setting of that name takes its place
        "padding_value": Ignored(),  # the stock extractor pads with zeros
    }
    tiny_config = {
        "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 192, "num_mel_bins": 32, "max_length": 64,
        "frequency_stride": 10, "time_stride": 10,
    }  # fmt: skip
    tiny_extractor = {"num_mel_bins": 32, "max_length": 64}
    tiny_length = 64

    stride: int | None = setting(None, "patch stride; none: as in the checkpoint", minimum=1)

    def feature_spec(
        self, config: ASTConfig, extractor: ASTFeatureExtractor, max_length: int
    ) -> FbankSpec:
        """Log-mel frames, normalised by the checkpoint's statistics if it says so."""
        mean, std = (extractor.mean, extractor.std) if extractor.do_normalize else (0.0, 0.5)
        return FbankSpec(
            sample_rate=extractor.sampling_rate,
            max_length=max_length,
            mel_bins=config.num_mel_bins,
            mean=float(mean),
            std=float(std),
        )

    def wrap(self, model: ASTModel, extractor: ASTFeatureExtractor, max_length: int) -> ASTBackbone:
        """Put an AST behind roles, at the wanted length and patch stride."""
        features = self.feature_spec(model.config, extractor, max_length)
        set_geometry(model, max_length, self.stride)
        return ASTBackbone(
            model.eval(),
            name=self.registered_name,
            features=features,
            dim=model.config.hidden_size,
            blocks=numbered("layers", len(model.layers)),
            roles=ROLES,
            norm="layernorm",
            embedding="embeddings",
            prefix_tokens=2,
        )


@BACKBONES.register("ast", paper="arXiv:2104.01778", model_type="audio-spectrogram-transformer")
class AST(ASTSource):
    """Audio Spectrogram Transformer, from the hub or from a local folder."""

    source: str = setting(HUB_ID, "hub id, or a folder written by save_pretrained")


@BACKBONES.register("ast_tiny", paper="tools/pretrain")
class ASTTiny(ASTSource):
    """The small pretrained AST embedded in the package (d 192, 6 layers, patches of 16 x 16)."""

    @property
    def checkpoint(self) -> str:
        """The embedded folder."""
        return str(TINY)


def set_geometry(model: ASTModel, max_length: int, stride: int | None = None) -> None:
    """Make a stock AST read `max_length` frames, at another patch stride if one is given.

    The position table is fitted as the original authors do (`resample_positions`).

    Raises:
        ConfigError: fewer frames than one patch.
    """
    config: Any = model.config
    embeddings: Any = model.embeddings
    if max_length < config.patch_size:
        raise ConfigError(
            f"max_length {max_length} is shorter than one patch of {config.patch_size} frames"
        )
    old = embeddings.get_shape(config)
    config.max_length = max_length
    if stride is not None:
        config.frequency_stride = config.time_stride = stride
        embeddings.patch_embeddings.projection.stride = (stride, stride)
    new = embeddings.get_shape(config)
    if new != old:
        table = resample_positions(embeddings.position_embeddings.detach(), old, new)
        embeddings.position_embeddings = nn.Parameter(table)


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Fit AST's position table to another patch grid, as the original implementation does.

    Along each axis the centre is cut out where fewer positions are needed, and the table is
    interpolated bilinearly where more are needed; the rows of CLS and distillation stay.

    Args:
        table: [1, 2 + f t, d], patches in frequency-major order.
        old, new: patch grids (f, t).

    Returns:
        [1, 2 + f' t', d].
    """
    special, patches = table[:, :2], table[:, 2:]
    grid = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)  # [1, d, f, t]
    for axis, size in ((3, new[1]), (2, new[0])):
        have = grid.shape[axis]
        if size <= have:
            grid = grid.narrow(axis, have // 2 - size // 2, size)
        else:
            shape = (size, grid.shape[3]) if axis == 2 else (grid.shape[2], size)
            grid = functional.interpolate(grid, size=shape, mode="bilinear")
    return torch.cat([special, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
