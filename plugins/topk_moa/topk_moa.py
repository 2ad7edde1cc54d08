"""The sparse mixture of adapters: the top-k gate of Switch and GShard over adapters."""

from toolkit.peft.topk import TopKMethod
from toolkit.registry import PEFT


@PEFT.register("topk_moa", paper="arXiv:2006.16668")
class TopKMoA(TopKMethod):
    """Sparse mixture of adapters: every token goes to the k experts that a softmax prefers."""
