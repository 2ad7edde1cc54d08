"""Wav2Vec 2.0 (Baevski et al., arXiv:2006.11477), in transformers' own class."""

from transformers import Wav2Vec2Config, Wav2Vec2Model

from toolkit.backbones.speech import SpeechSource
from toolkit.registry import BACKBONES
from toolkit.settings import setting


@BACKBONES.register("wav2vec2", paper="arXiv:2006.11477", model_type="wav2vec2")
class Wav2Vec2(SpeechSource):
    """Wav2Vec 2.0, from the hub or from a local folder."""

    model_class, config_class = Wav2Vec2Model, Wav2Vec2Config
    source: str = setting(
        "facebook/wav2vec2-base", "hub id, or a folder written by save_pretrained"
    )
