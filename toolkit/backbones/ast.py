"""The Audio Spectrogram Transformer (Gong et al., arXiv:2104.01778), in transformers' own class."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel
from transformers.utils import logging

from toolkit.backbones.base import Backbone, BackboneSource, FeatureSpec
from toolkit.backbones.hub import hub_is_reachable
from toolkit.errors import BackboneError, ConfigError
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

    def encode(self, features: Tensor) -> Tensor:
        """Normalised log-mel frames [B, T, F] -> tokens [B, 2 + patches, d]."""
        return self.model(input_values=features).last_hidden_state

    @property
    def grid(self) -> tuple[int, int]:
        """See `Backbone.grid`."""
        config = self.model.config
        sizes = (config.num_mel_bins, config.max_length)
        strides = (config.frequency_stride, config.time_stride)
        f, t = (
            (size - config.patch_size) // stride + 1
            for size, stride in zip(sizes, strides, strict=True)
        )
        return f, t

    @torch.no_grad()
    def zero_positions(self) -> None:
        """See `Backbone.zero_positions`; the special tokens' rows become zero too."""
        self.model.get_parameter("embeddings.position_embeddings").zero_()


class ASTSource(BackboneSource, ABC):
    """Base of the sources of an AST."""

    stride: int | None = setting(None, "patch stride; none keeps the checkpoint's own", minimum=1)

    @property
    @abstractmethod
    def checkpoint(self) -> str:
        """Hub id, or a folder written by `save_pretrained`."""

    def load(self, max_length: int) -> ASTBackbone:
        """See `BackboneSource.load`."""
        model, info = self._from_pretrained(
            ASTModel, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )
        lost = [*info["missing_keys"], *(m[0] for m in info["mismatched_keys"])]
        extra = [k for k in info["unexpected_keys"] if not k.startswith("classifier.")]
        if lost or extra:
            raise BackboneError(
                f"the checkpoint {self.checkpoint} is not a whole AST: "
                f"without a place: {', '.join(sorted(extra)) or 'none'}; "
                f"missing or of another shape: {', '.join(sorted(lost)) or 'none'}"
            )
        extractor = ASTFeatureExtractor()  # a folder without one: AudioSet's statistics
        folder = Path(self.checkpoint)
        if not folder.is_dir() or (folder / "preprocessor_config.json").is_file():
            extractor = self._from_pretrained(ASTFeatureExtractor)
        return self._wrap(model, extractor, max_length)

    def architecture(self, max_length: int) -> ASTBackbone:
        """See `BackboneSource.architecture`; a hub id stands for AST-base."""
        config = ASTConfig()
        if Path(self.checkpoint).is_dir():
            config = ASTConfig.from_pretrained(self.checkpoint)
        with torch.device("meta"):
            return self._wrap(ASTModel(config), ASTFeatureExtractor(), max_length)

    def _from_pretrained(self, stock: type, **options: object) -> object:
        logging.disable_progress_bar()  # of the weights' loading; a download keeps its own
        try:
            return stock.from_pretrained(
                self.checkpoint, local_files_only=not hub_is_reachable(), **options
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise BackboneError(
                f"{stock.__name__} cannot be had from '{self.checkpoint}' ({_first_line(error)}): "
                "without internet use `--backbone ast_tiny` (embedded) or `--backbone PATH` "
                "(a folder that holds the checkpoint)"
            ) from error

    def _wrap(
        self, model: ASTModel, extractor: ASTFeatureExtractor, max_length: int
    ) -> ASTBackbone:
        set_geometry(model, max_length, self.stride)
        return ASTBackbone(
            model.eval(),
            name=self.registered_name,
            features=FeatureSpec(
                kind="fbank",
                sample_rate=extractor.sampling_rate,
                mel_bins=model.config.num_mel_bins,
                max_length=max_length,
                mean=extractor.mean,
                std=extractor.std,
            ),
            dim=model.config.hidden_size,
            blocks="layers",
            roles=ROLES,
            norm="layernorm",
            embedding="embeddings",
            prefix_tokens=2,
        )


@BACKBONES.register("ast", paper="arXiv:2104.01778", model_type="audio-spectrogram-transformer")
class AST(ASTSource):
    """Audio Spectrogram Transformer, from the hub or from a local folder."""

    source: str = setting(HUB_ID, "hub id, or a folder written by save_pretrained")

    @property
    def checkpoint(self) -> str:
        """See `ASTSource.checkpoint`."""
        return self.source


@BACKBONES.register("ast_tiny", paper="recipes/Pretrain")
class ASTTiny(ASTSource):
    """The small pretrained AST embedded in the package (d 192, 6 layers, patches of 16 x 16)."""

    @property
    def checkpoint(self) -> str:
        """See `ASTSource.checkpoint`."""
        return str(TINY)


def set_geometry(model: ASTModel, max_length: int, stride: int | None = None) -> None:
    """Make a stock AST read `max_length` frames, at another patch stride if one is given.

    The position table is fitted as the original authors do (`resample_positions`).

    Raises:
        ConfigError: fewer frames than one patch.
    """
    config, embeddings = model.config, model.embeddings
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
    grid = patches.unflatten(1, old).permute(0, 3, 1, 2)  # [1, d, f, t]
    for axis, size in ((3, new[1]), (2, new[0])):
        have = grid.shape[axis]
        if size <= have:
            grid = grid.narrow(axis, have // 2 - size // 2, size)
        else:
            shape = (size, grid.shape[3]) if axis == 2 else (grid.shape[2], size)
            grid = functional.interpolate(grid, size=shape, mode="bilinear")
    return torch.cat([special, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
