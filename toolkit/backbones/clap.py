"""The audio tower of CLAP, HTSAT (Wu et al., arXiv:2211.06687), in transformers' own class."""

import dataclasses
from typing import Any, cast, get_args

from einops import rearrange
from torch import Tensor, nn
from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

from toolkit.backbones.base import Backbone
from toolkit.backbones.extractor import Derived, Ignored, Number, OneOf
from toolkit.backbones.stock import StockSource, require_length
from toolkit.errors import BackboneError, ConfigError
from toolkit.features import mel
from toolkit.features.mel import Padding
from toolkit.features.spec import FRAMES_PER_SECOND, WaveformSpec
from toolkit.registry import BACKBONES
from toolkit.settings import setting

ROLES = {
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense",
    "ffn.up": "intermediate.0.dense",
    "ffn.down": "intermediate.1.dense",
    "mhsa": "attention",
    "ffn": "intermediate",
    "norm.mhsa": "layernorm_before",
    "norm.ffn": "layernorm_after",
}
SAMPLE_RATE, WINDOW, HOP = 48_000, 1024, 480
GRID = "its patches lie on a grid that is cut into windows"


@dataclasses.dataclass(frozen=True)
class ClapSpec(WaveformSpec):
    """CLAP's log-mel frames in dB of clips that are brought to the model's length.

    Attributes:
        mel_bins: F.
        samples: length to which every clip is brought.
        slaney: use the mel filters of checkpoints without fusion.
        frequency_min, frequency_max: Hz between which the mel filters lie.
        padding: how a clip is brought to that length (see `mel.clap`).
    """

    mel_bins: int = 64
    samples: int = 480_000
    slaney: bool = True
    frequency_min: float = 0.0
    frequency_max: float = 14_000.0
    padding: Padding = "repeatpad"

    spectral = True

    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Samples [B, S, 1] -> log-mel frames [B, 1 + samples / 480, F]."""
        return mel.clap(
            features.squeeze(-1),
            lengths,
            self.samples,
            self.mel_bins,
            slaney=self.slaney,
            band=(self.frequency_min, self.frequency_max),
            padding=self.padding,
        )


class ClapBackbone(Backbone):
    """HTSAT behind roles: stages of fewer and wider patches; the last stage's are its tokens."""

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn log-mel frames [B, T, F] into tokens [B, M, d]; none of these is padding."""
        images, longer = features[:, None], None
        config: Any = self.model.config
        if config.enable_fusion:  # no clip is longer than what the model reads
            images = images.expand(-1, 4, -1, -1)
            longer = features.new_zeros(len(features), 1)
        tokens: Tensor = self.model(images, is_longer=longer).last_hidden_state.flatten(2).mT
        return tokens

    def resume(self, tokens: Tensor, lengths: Tensor | None, block: int) -> Tensor:
        """Tokens through the upper blocks, and through what joins patches behind each stage."""
        encoder: Any = self.model.audio_encoder
        number = 0
        for stage, size in zip(encoder.layers, encoder.input_resolutions, strict=True):
            for module in stage.blocks:
                if number >= block:
                    tokens = module(tokens, size)[0]
                number += 1
            if number > block and stage.downsample is not None:
                tokens = stage.downsample(tokens, size)
        height, width = encoder.input_resolutions[-1]
        normed: Tensor = self.final.module(tokens)
        bands = height // encoder.freq_ratio
        return rearrange(normed, "b (g c t) d -> b d (c g t)", c=bands, t=width).mT


@BACKBONES.register("clap", paper="arXiv:2211.06687", model_type=["clap", "clap_audio_model"])
class Clap(StockSource):
    """CLAP's audio tower (HTSAT), from the hub or from a local folder; clips fill 10 seconds."""

    features = ClapSpec
    model_class, config_class = ClapAudioModel, ClapAudioConfig
    extractor_class = ClapFeatureExtractor
    heads = ("text_model.", "text_projection.", "audio_projection.", "logit_scale_")
    renamed = {r"^audio_model\.": ""}
    extractor_keys = {
        "sampling_rate": OneOf(SAMPLE_RATE),
        "hop_length": OneOf(HOP),
        "fft_window_size": OneOf(WINDOW),
        "frequency_min": Number(0, SAMPLE_RATE / 2),
        "frequency_max": Number(0, SAMPLE_RATE / 2),
        "truncation": OneOf("rand_trunc", "fusion"),
        "padding": OneOf(*get_args(Padding)),
        "max_length_s": Number(1, 3600, whole=True),
        "top_db": OneOf(None),
        "feature_size": Derived(lambda said, config: config.num_mel_bins),
        "n_fft": Derived(lambda said, config: WINDOW),
        "nb_frequency_bins": Derived(lambda said, config: WINDOW // 2 + 1),
        "nb_max_samples": Derived(lambda said, config: said.max_length_s * SAMPLE_RATE),
        "nb_max_frames": Derived(lambda said, config: said.max_length_s * SAMPLE_RATE // HOP),
        "chunk_length_s": Derived(lambda said, config: said.max_length_s),
        "padding_value": Ignored(),  # the stock extractor pads with zeros
        "mel_filters": Ignored(),
        "mel_filters_slaney": Ignored(),
    }
    tiny_config = {
        "spec_size": 64, "num_mel_bins": 32, "window_size": 4, "patch_embeds_hidden_size": 96,
        "depths": [1, 1], "num_attention_heads": [4, 4], "mlp_ratio": 2.0,
    }  # fmt: skip
    tiny_extractor = {"feature_size": 32, "max_length_s": 1, "truncation": "rand_trunc"}
    tiny_length = 100

    source: str = setting(
        "laion/clap-htsat-unfused", "hub id, or a folder written by save_pretrained"
    )

    def feature_spec(
        self, config: ClapAudioConfig, extractor: ClapFeatureExtractor, max_length: int
    ) -> ClapSpec:
        """Samples, turned into log-mel frames of a fixed length.

        Raises:
            ConfigError: that length is shorter than `max_length`.
            BackboneError: the frequency range is empty.
        """
        if not extractor.frequency_min < extractor.frequency_max:
            raise BackboneError(
                f"{self.checkpoint} says of its features that they lie between "
                f"{extractor.frequency_min} and {extractor.frequency_max} Hz: correct its "
                "preprocessor_config.json"
            )
        rate, samples = extractor.sampling_rate, extractor.nb_max_samples
        require_length(max_length, samples * FRAMES_PER_SECOND // rate, self.registered_name)
        return ClapSpec(
            sample_rate=rate,
            max_length=max_length,
            mel_bins=config.num_mel_bins,
            samples=samples,
            slaney=extractor.truncation != "fusion",
            frequency_min=float(extractor.frequency_min),
            frequency_max=float(extractor.frequency_max),
            padding=cast(Padding, extractor.padding),  # one of these: `extractor_keys`
        )

    def limit_depth(self, config: ClapAudioConfig, depth: int) -> None:
        """Leave out blocks of the last stage; the final norm fits no other.

        Raises:
            ConfigError: it has fewer blocks, or `depth` leaves out a whole stage.
        """
        *earlier, last = config.depths
        least = sum(earlier) + 1
        self.require_depth(depth, sum(earlier) + last)
        if depth < least:
            raise ConfigError(
                f"'depth' {depth} ends before the last stage of {self.checkpoint}, and the tokens "
                "of earlier stages are narrower than its final norm: use `--backbone.depth "
                f"{least}` or more"
            )
        config.depths = [*earlier, depth - sum(earlier)]

    def wrap(
        self, model: ClapAudioModel, extractor: ClapFeatureExtractor, max_length: int
    ) -> ClapBackbone:
        """Put CLAP's audio tower behind roles."""
        blocks = []
        stages: Any = model.audio_encoder.layers
        for number, stage in enumerate(stages):
            for place, block in enumerate(stage.blocks):
                _gather_ffn(block)
                blocks.append(f"audio_encoder.layers.{number}.blocks.{place}")
        return ClapBackbone(
            model,
            name=self.registered_name,
            features=self.feature_spec(model.config, extractor, max_length),
            dim=model.audio_encoder.num_features,
            blocks=blocks,
            roles=ROLES,
            norm="audio_encoder.norm",
            embedding="audio_encoder.patch_embed",
            refused={"tokens": GRID, "kv": "its attention is written out in the stock class"},
            windowed=("mhsa",),
        )


def _gather_ffn(block: Any) -> None:
    """Put a block's feed-forward, which the stock block has in two modules, into one."""
    block.intermediate = nn.Sequential(block.intermediate, block.output)
    block.output = nn.Identity()
