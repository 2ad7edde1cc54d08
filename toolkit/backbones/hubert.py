"""HuBERT (Hsu et al., arXiv:2106.07447), in transformers' own class."""

from transformers import HubertConfig, HubertModel

from toolkit.backbones.speech import SpeechSource
from toolkit.registry import BACKBONES
from toolkit.settings import setting


@BACKBONES.register("hubert", paper="arXiv:2106.07447", model_type="hubert")
class Hubert(SpeechSource):
    """HuBERT, from the hub or from a local folder."""

    model_class, config_class = HubertModel, HubertConfig
    source: str = setting(
        "facebook/hubert-base-ls960", "hub id, or a folder written by save_pretrained"
    )
