"""SEW (Wu et al., arXiv:2109.06870), in transformers' own class."""

from transformers import SEWConfig, SEWModel

from toolkit.backbones.speech import SpeechSource
from toolkit.registry import BACKBONES
from toolkit.settings import setting


@BACKBONES.register("sew", paper="arXiv:2109.06870", model_type="sew")
class SEW(SpeechSource):
    """SEW: a Wav2Vec 2.0 whose transformer reads half as many frames."""

    model_class, config_class = SEWModel, SEWConfig
    source: str = setting("asapp/sew-tiny-100k", "hub id, or a folder written by save_pretrained")
