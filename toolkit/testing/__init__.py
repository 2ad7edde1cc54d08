"""What tests of methods and tools stand on: small random things, and the contracts as checks."""

from toolkit.errors import ConfigError

if not __debug__:
    raise ConfigError("the checks are assertions, which Python leaves out with -O: run it without")

from toolkit.testing.checks import (
    check_identity,
    check_layers,
    check_merging,
    check_method,
    check_saving,
    check_training,
)
from toolkit.testing.contracts import (
    check_augmentation,
    check_backbone,
    check_corpus,
    check_pipeline,
)
from toolkit.testing.memory import LargestTensor
from toolkit.testing.mixtures import check_mixtures
from toolkit.testing.padding import (
    check_padding,
    check_padding_in_statistics,
    check_padding_in_training,
    compare_padded,
)
from toolkit.testing.reuse import check_reuse
from toolkit.testing.tiny import (
    CLASSES,
    first_mixture,
    tiny_backbone,
    tiny_batch,
    tiny_classifier,
    tiny_data,
    tiny_lengths,
    tiny_mixture,
    tiny_objective,
    tiny_rows,
)

__all__ = [
    "CLASSES",
    "LargestTensor",
    "check_augmentation",
    "check_backbone",
    "check_corpus",
    "check_identity",
    "check_layers",
    "check_merging",
    "check_method",
    "check_mixtures",
    "check_padding",
    "check_padding_in_statistics",
    "check_padding_in_training",
    "check_pipeline",
    "check_reuse",
    "check_saving",
    "check_training",
    "compare_padded",
    "first_mixture",
    "tiny_backbone",
    "tiny_batch",
    "tiny_classifier",
    "tiny_data",
    "tiny_lengths",
    "tiny_mixture",
    "tiny_objective",
    "tiny_rows",
]
