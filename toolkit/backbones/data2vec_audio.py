"""Data2Vec on audio (Baevski et al., arXiv:2202.03555), in transformers' own class."""

from transformers import Data2VecAudioConfig, Data2VecAudioModel

from toolkit.backbones.speech import SpeechSource
from toolkit.registry import BACKBONES
from toolkit.settings import setting


@BACKBONES.register("data2vec_audio", paper="arXiv:2202.03555", model_type="data2vec-audio")
class Data2VecAudio(SpeechSource):
    """Data2Vec's audio encoder, from the hub or from a local folder."""

    model_class, config_class = Data2VecAudioModel, Data2VecAudioConfig
    source: str = setting(
        "facebook/data2vec-audio-base", "hub id, or a folder written by save_pretrained"
    )
    tiny_config = {
        **SpeechSource.tiny_config,
        "num_conv_pos_embeddings": 2,
        "conv_pos_kernel_size": 5,
    }
