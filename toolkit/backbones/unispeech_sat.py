"""UniSpeech-SAT (Chen et al., arXiv:2110.05752), in transformers' own class."""

from transformers import UniSpeechSatConfig, UniSpeechSatModel

from toolkit.backbones.speech import SpeechSource
from toolkit.registry import BACKBONES
from toolkit.settings import setting


@BACKBONES.register("unispeech_sat", paper="arXiv:2110.05752", model_type="unispeech-sat")
class UniSpeechSat(SpeechSource):
    """UniSpeech-SAT, from the hub or from a local folder."""

    model_class, config_class = UniSpeechSatModel, UniSpeechSatConfig
    source: str = setting(
        "microsoft/unispeech-sat-base", "hub id, or a folder written by save_pretrained"
    )
