"""The encoder of Whisper (Radford et al., arXiv:2212.04356), in transformers' own class."""

import dataclasses
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from toolkit.backbones.base import Backbone, numbered
from toolkit.backbones.extractor import Derived, Ignored, OneOf
from toolkit.backbones.stock import StockSource, require_length
from toolkit.features import mel
from toolkit.features.spec import WaveformSpec
from toolkit.padding import real
from toolkit.registry import BACKBONES
from toolkit.settings import setting

SAMPLE_RATE, WINDOW = 16000, 400
HOP, STRIDE = 160, 2  # samples per frame, frames per token
ROLES = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.out_proj",
    "ffn.up": "fc1.up",
    "ffn.down": "fc1.down",
    "mhsa": "self_attn",
    "ffn": "fc1",
    "norm.mhsa": "self_attn_layer_norm",
    "norm.ffn": "final_layer_norm",
}


@dataclasses.dataclass(frozen=True)
class WhisperSpec(WaveformSpec):
    """Whisper's log-mel frames of clips padded with silence.

    Attributes:
        mel_bins: F.
        frames: frames that every clip is padded to.
    """

    mel_bins: int = 80
    frames: int = 3000

    spectral = True

    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Samples [B, S, 1] -> log-mel frames [B, frames, F]."""
        silence = self.frames * HOP - features.shape[1]
        return mel.whisper(functional.pad(features.squeeze(-1), (0, silence)), self.mel_bins)


class WhisperBackbone(Backbone):
    """Whisper's encoder behind roles; its attention includes the silence behind a clip."""

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn log-mel frames [B, frames, F] into tokens [B, frames / 2, d]."""
        self._note_silence(lengths, features.shape[1] // STRIDE)
        hidden: Tensor = self.model(features.mT).last_hidden_state
        return hidden

    def resume(self, tokens: Tensor, lengths: Tensor | None, block: int) -> Tensor:
        """Tokens through the upper blocks, silence included."""
        self._note_silence(lengths, tokens.shape[1])
        tokens = tokens.mT.contiguous().mT  # in the stock order of memory, in which sums are exact
        return self.through_blocks(tokens, block, attention_mask=None)

    def _note_silence(self, lengths: Tensor | None, size: int) -> None:
        """Say which of `size` tokens per clip are sound."""
        if lengths is not None:
            tokens = -(-lengths // (HOP * STRIDE))
            self.context.frames = real(tokens.clamp(min=1), size)


class Entry(nn.Module):
    """Passes on what enters the first block, so that this place has a module."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens [B, T, d] as they are."""
        return x


@BACKBONES.register("whisper", paper="arXiv:2212.04356", model_type="whisper")
class Whisper(StockSource):
    """Whisper's encoder, from the hub or from a local folder; clips are padded to 30 seconds."""

    features = WhisperSpec
    model_class, config_class = WhisperEncoder, WhisperConfig
    extractor_class = WhisperFeatureExtractor
    heads = ("decoder.", "model.decoder.", "proj_out.")
    renamed = {r"^(model\.)?encoder\.": ""}
    extractor_keys = {
        "sampling_rate": OneOf(SAMPLE_RATE),
        "n_fft": OneOf(WINDOW),
        "hop_length": OneOf(HOP),
        "dither": OneOf(0.0),
        "padding_value": OneOf(0.0),
        "feature_size": Derived(lambda said, config: config.num_mel_bins),
        "chunk_length": Derived(
            lambda said, config: config.max_source_positions * STRIDE * HOP / SAMPLE_RATE
        ),
        "n_samples": Derived(lambda said, config: config.max_source_positions * STRIDE * HOP),
        "nb_max_frames": Derived(lambda said, config: config.max_source_positions * STRIDE),
        "mel_filters": Ignored(),  # of version 4, which wrote them down
    }
    options = {"encoder_layerdrop": 0.0}
    tiny_config = {
        "d_model": 96, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 192,
        "max_source_positions": 50, "num_mel_bins": 80,
    }  # fmt: skip
    tiny_extractor = {"chunk_length": 1}
    tiny_length = 100

    source: str = setting("openai/whisper-base", "hub id, or a folder written by save_pretrained")

    def feature_spec(
        self, config: WhisperConfig, extractor: WhisperFeatureExtractor, max_length: int
    ) -> WhisperSpec:
        """Samples, turned into log-mel frames of a fixed length.

        Raises:
            ConfigError: that length is shorter than `max_length`.
        """
        frames = STRIDE * config.max_source_positions
        require_length(max_length, frames, self.registered_name)
        return WhisperSpec(
            sample_rate=extractor.sampling_rate,
            max_length=max_length,
            mel_bins=config.num_mel_bins,
            frames=frames,
        )

    def wrap(
        self, model: WhisperEncoder, extractor: WhisperFeatureExtractor, max_length: int
    ) -> WhisperBackbone:
        """Put Whisper's encoder behind roles."""
        depth = len(model.layers)
        for layer in model.layers:
            _gather_ffn(layer)
        model.layers.insert(0, Entry())
        return WhisperBackbone(
            model,
            name=self.registered_name,
            features=self.feature_spec(model.config, extractor, max_length),
            dim=model.config.d_model,
            blocks=numbered("layers", depth, first=1),
            roles=ROLES,
            norm="layer_norm",
            embedding="layers.0",
        )


def _gather_ffn(layer: Any) -> None:
    """Put the parts of a block's feed-forward into one module."""
    parts = {
        "up": layer.fc1,
        "activation": layer.activation_fn,
        "dropout": nn.Dropout(layer.activation_dropout),
        "down": layer.fc2,
    }
    layer.fc1 = nn.Sequential(OrderedDict(parts))
    layer.activation_fn, layer.fc2, layer.activation_dropout = nn.Identity(), nn.Identity(), 0.0
