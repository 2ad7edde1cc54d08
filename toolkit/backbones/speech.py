"""What Wav2Vec 2.0 and its descendants share: waveforms, convolutions, a transformer.

The stock encoders leave padding out of the attention, but not out of the group norm of the first
convolution (in base sizes) and of positional convolutions. Both are corrected here, so that padding
changes nothing.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2FeatureExtractor
from transformers.masking_utils import create_bidirectional_mask

from toolkit.backbones.base import numbered
from toolkit.backbones.extractor import SAMPLE_RATES, Ignored, OneOf
from toolkit.backbones.masking import MaskedBackbone, MaskedGroupNorm
from toolkit.backbones.stock import StockSource
from toolkit.features.spec import WaveformSpec
from toolkit.padding import real

ROLES = {
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.o": "attention.out_proj",
    "ffn.up": "feed_forward.intermediate_dense",
    "ffn.down": "feed_forward.output_dense",
    "mhsa": "attention",
    "ffn": "feed_forward",
    "norm.mhsa": "layer_norm",
    "norm.ffn": "final_layer_norm",
}


class SpeechBackbone(MaskedBackbone):
    """A model of the Wav2Vec 2.0 kind behind roles; a token is usually a frame of 20 ms.

    Attributes:
        heard: real frames of the present batch [B, T] behind the convolutions; None: all are.
    """

    def __init__(self, model: Any, **parts: Any) -> None:
        first = model.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm = MaskedGroupNorm(first.layer_norm)
        super().__init__(model, **parts)
        config = model.config
        self.convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.context.rate = getattr(config, "squeeze_factor", 1)
        self.heard: Tensor | None = None
        for module in model.encoder.pos_conv_embed.modules():
            if isinstance(module, nn.Conv1d):
                module.register_forward_pre_hook(self._silence_padding)

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn samples [B, S, 1] into tokens [B, M, d].

        Clips shorter than one token count as one token. Where the encoder joins pairs of frames
        (SEW), a last frame without a partner is left out.
        """
        waves, rate = features.squeeze(-1), self.context.rate
        least = self.samples(rate)
        waves = functional.pad(waves, (0, max(0, least - waves.shape[1])))
        if lengths is None:
            lengths = torch.full((len(waves),), waves.shape[1], device=waves.device)
        mask = self._mask(lengths.clamp(min=least), waves.shape[1])
        whole = self.frames(waves.shape[1]) // rate * rate
        tokens: Tensor = self.model(waves, attention_mask=mask).last_hidden_state
        return tokens[:, : self.context.front * rate + whole]

    def resume(self, tokens: Tensor, lengths: Tensor | None, block: int) -> Tensor:
        """Tokens through the upper blocks; joined frames (SEW) are taken apart again."""
        if lengths is not None:
            lengths = lengths.clamp(min=self.samples(self.context.rate))
            self._mask(lengths, int(lengths.max()))
        tokens = self.through_blocks(tokens, block, attention_mask=self._attention_mask(tokens))
        if self.context.rate > 1:
            encoder: Any = self.model.encoder
            tokens = encoder.upsample(tokens)
        return tokens

    def _attention_mask(self, tokens: Tensor) -> Tensor | None:
        """What the stock encoder passes on to its blocks; `_extend_masks` adds the prompts."""
        frames, config = self.context.frames, cast(Any, self.model).config
        real_tokens = None if frames is None else frames[:, :: self.context.rate]
        mask: Tensor | None = create_bidirectional_mask(config, tokens, real_tokens)
        return mask

    def frames(self, samples: Any, layers: int | None = None) -> Any:
        """Number of frames after the first `layers` convolutions (None: all) for these samples."""
        for kernel, stride in self.convolutions[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples

    def samples(self, frames: Any) -> Any:
        """The smallest number of samples from which the convolutions make these frames."""
        for kernel, stride in reversed(self.convolutions):
            frames = (frames - 1) * stride + kernel
        return frames

    def _mask(self, lengths: Tensor, size: int) -> Tensor | None:
        """The mask of real samples [B, size], None if all are; also sets the masks of frames."""
        padded = bool((lengths < size).any())
        self.heard = None
        if padded:
            rate, counts, most = self.context.rate, self.frames(lengths), self.frames(size)
            self.heard = real(counts, most)
            self.context.frames = real(counts // rate * rate, most // rate * rate)
        extractor: Any = self.model.feature_extractor
        norm = getattr(extractor.conv_layers[0], "layer_norm", None)
        if isinstance(norm, MaskedGroupNorm):
            norm.counts = self.frames(lengths, layers=1) if padded else None
        return real(lengths, size).long() if padded else None

    def _silence_padding(self, convolution: nn.Module, args: tuple[Tensor]) -> Tensor:
        """Zeros where a positional convolution reads padding [B, d, T]."""
        return args[0] if self.heard is None else args[0] * self.heard[:, None].to(args[0].dtype)


class SpeechSource(StockSource):
    """Base of the families of the Wav2Vec 2.0 kind.

    Attributes:
        backbone_class: what puts a model of the family behind roles.
    """

    backbone_class: ClassVar[type[SpeechBackbone]] = SpeechBackbone
    features = WaveformSpec
    extractor_class = Wav2Vec2FeatureExtractor
    heads = (
        "quantizer.", "project_q.", "project_hid.", "speaker_proj.", "label_embeddings_concat",
        "layer_norm_for_extract.", "lm_head.", "projector.", "classifier.", "layer_weights",
        "tdnn.", "objective.", "masked_spec_embed",
    )  # fmt: skip
    extractor_keys = {
        "sampling_rate": SAMPLE_RATES,
        "do_normalize": OneOf(True, False),
        "feature_size": OneOf(1),
        "padding_value": Ignored(),  # padding is masked, on whichever side
        "padding_side": Ignored(),
    }
    # Random masks and dropped layers are for full fine-tuning, and numpy's generator draws them.
    options = {"apply_spec_augment": False, "layerdrop": 0.0}
    tiny_config = {
        "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 192, "conv_dim": (16, 16, 16), "conv_kernel": (10, 4, 4),
        "conv_stride": (5, 4, 4), "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    }  # fmt: skip
    tiny_length = 20

    def feature_spec(
        self, config: Any, extractor: Wav2Vec2FeatureExtractor, max_length: int
    ) -> WaveformSpec:
        """Samples, normalised if the checkpoint's extractor does so."""
        return WaveformSpec(
            sample_rate=extractor.sampling_rate,
            max_length=max_length,
            unit_variance=extractor.do_normalize,
        )

    def wrap(
        self, model: Any, extractor: Wav2Vec2FeatureExtractor, max_length: int
    ) -> SpeechBackbone:
        """Put a model of this kind behind roles."""
        if hasattr(model, "masked_spec_embed"):  # of pretraining
            del model.masked_spec_embed
        depth = len(model.encoder.layers)
        pre_norm = getattr(model.config, "do_stable_layer_norm", False)
        norm = "encoder.layer_norm" if pre_norm else f"encoder.layers.{depth - 1}.final_layer_norm"
        return self.backbone_class(
            model,
            name=self.registered_name,
            features=self.feature_spec(model.config, extractor, max_length),
            dim=model.config.hidden_size,
            blocks=numbered("encoder.layers", depth),
            roles=ROLES,
            norm=norm,
            embedding="encoder.dropout",
            pre_norm=pre_norm,
        )
