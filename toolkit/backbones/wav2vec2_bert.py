"""Wav2Vec2-BERT (Seamless Communication, arXiv:2312.05187), in transformers' own class."""

import dataclasses
from typing import Any, cast

from torch import Tensor
from torch.nn import functional
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel
from transformers.masking_utils import create_bidirectional_mask

from toolkit.backbones.base import numbered
from toolkit.backbones.extractor import Derived, Ignored, Number, OneOf
from toolkit.backbones.masking import MaskedBackbone
from toolkit.backbones.stock import StockSource
from toolkit.errors import BackboneError
from toolkit.features import mel
from toolkit.features.spec import WaveformSpec
from toolkit.padding import real
from toolkit.registry import BACKBONES
from toolkit.settings import setting

SAMPLE_RATE, WINDOW, HOP = 16000, 400, 160
ROLES = {
    "attn.q": "self_attn.linear_q",
    "attn.k": "self_attn.linear_k",
    "attn.v": "self_attn.linear_v",
    "attn.o": "self_attn.linear_out",
    "ffn.up": "ffn2.intermediate_dense",
    "ffn.down": "ffn2.output_dense",
    "mhsa": "self_attn",
    "ffn": "ffn2",  # the second feed-forward of a conformer block; the first has no role
    "norm.mhsa": "self_attn_layer_norm",
    "norm.ffn": "ffn2_layer_norm",
}


@dataclasses.dataclass(frozen=True)
class Wav2Vec2BertSpec(WaveformSpec):
    """Kaldi's log-mel frames, each mel band of a clip with zero mean and unit variance.

    Attributes:
        mel_bins: F.
        stride: number of frames that the backbone reads as one.
    """

    mel_bins: int = 80
    stride: int = 2

    spectral = True

    def frames(self, lengths: Tensor) -> Tensor:
        """The number of log-mel frames for numbers of samples, at least those of one token."""
        return ((lengths - WINDOW) // HOP + 1).clamp(min=self.stride)

    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Samples [B, S, 1] -> log-mel frames [B, T, F]; padding is zero."""
        missing = WINDOW + HOP * (self.stride - 1) - features.shape[1]
        waves = functional.pad(features.squeeze(-1), (0, max(0, missing)))
        frames = mel.wav2vec2_bert(waves, self.mel_bins)
        counts = None if lengths is None else self.frames(lengths)
        return mel.unit_variance(frames, counts, unbiased=True)


class Wav2Vec2BertBackbone(MaskedBackbone):
    """Wav2Vec2-BERT behind roles; a token is 20 ms."""

    features: Wav2Vec2BertSpec

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn log-mel frames [B, T, F] into tokens [B, T / 2, d]."""
        stride = self.features.stride
        whole = features.shape[1] // stride
        stacked = features[:, : whole * stride].reshape(len(features), whole, -1)
        self._note_padding(lengths, whole)
        output = self.model(stacked, attention_mask=self.context.frames)
        tokens: Tensor = output.last_hidden_state
        return tokens

    def resume(self, tokens: Tensor, lengths: Tensor | None, block: int) -> Tensor:
        """Tokens through the upper blocks, whose attention knows their relative positions."""
        self._note_padding(lengths, tokens.shape[1])
        frames, model = self.context.frames, cast(Any, self.model)
        positions = model.encoder.embed_positions
        return self.through_blocks(
            tokens,
            block,
            attention_mask=create_bidirectional_mask(model.config, tokens, frames),
            relative_position_embeddings=None if positions is None else positions(tokens),
            conv_attention_mask=frames,
        )

    def _note_padding(self, lengths: Tensor | None, size: int) -> None:
        """Say which of `size` tokens per clip are real."""
        if lengths is not None:
            counts = self.features.frames(lengths) // self.features.stride
            if bool((counts < size).any()):
                self.context.frames = real(counts, size)


@BACKBONES.register("wav2vec2_bert", paper="arXiv:2312.05187", model_type="wav2vec2-bert")
class Wav2Vec2Bert(StockSource):
    """Wav2Vec2-BERT, from the hub or from a local folder."""

    features = Wav2Vec2BertSpec
    model_class, config_class = Wav2Vec2BertModel, Wav2Vec2BertConfig
    extractor_class = SeamlessM4TFeatureExtractor
    heads = ("lm_head.", "projector.", "classifier.", "layer_weights", "tdnn.", "objective.")
    extractor_keys = {
        "sampling_rate": OneOf(SAMPLE_RATE),
        "num_mel_bins": Number(1, 1024, whole=True),
        "stride": Number(1, 64, whole=True),
        "feature_size": Derived(lambda said, config: said.num_mel_bins),
        "padding_value": Ignored(),  # padding is masked, on whichever side
        "padding_side": Ignored(),
    }
    options = {"apply_spec_augment": False, "layerdrop": 0.0, "add_adapter": False}
    tiny_config = {
        "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 192, "feature_projection_input_dim": 160,
        "conv_depthwise_kernel_size": 5, "left_max_position_embeddings": 8,
        "right_max_position_embeddings": 4,
    }  # fmt: skip
    tiny_length = 100

    source: str = setting("facebook/w2v-bert-2.0", "hub id, or a folder by save_pretrained")

    def feature_spec(
        self, config: Any, extractor: SeamlessM4TFeatureExtractor, max_length: int
    ) -> Wav2Vec2BertSpec:
        """Samples, turned into the extractor's log-mel frames.

        Raises:
            BackboneError: these are not as wide as what the model reads.
        """
        width = extractor.num_mel_bins * extractor.stride
        if width != config.feature_projection_input_dim:
            raise BackboneError(
                f"{self.checkpoint} makes frames of {extractor.num_mel_bins} x {extractor.stride} "
                f"values and reads {config.feature_projection_input_dim}: correct its "
                "preprocessor_config.json"
            )
        return Wav2Vec2BertSpec(
            sample_rate=extractor.sampling_rate,
            max_length=max_length,
            mel_bins=extractor.num_mel_bins,
            stride=extractor.stride,
        )

    def wrap(
        self, model: Any, extractor: SeamlessM4TFeatureExtractor, max_length: int
    ) -> Wav2Vec2BertBackbone:
        """Put a Wav2Vec2-BERT behind roles."""
        if hasattr(model, "masked_spec_embed"):  # of pretraining
            del model.masked_spec_embed
        depth = len(model.encoder.layers)
        return Wav2Vec2BertBackbone(
            model,
            name=self.registered_name,
            features=self.feature_spec(model.config, extractor, max_length),
            dim=model.config.hidden_size,
            blocks=numbered("encoder.layers", depth),
            roles=ROLES,
            norm=f"encoder.layers.{depth - 1}.final_layer_norm",
            embedding="encoder.dropout",
        )
