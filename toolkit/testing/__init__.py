"""What tests of methods and tools stand on: small random things, and the contracts as checks."""

from toolkit.testing.checks import (
    check_identity,
    check_layers,
    check_merging,
    check_method,
    check_padding,
    check_padding_in_statistics,
    check_padding_in_training,
    check_saving,
    check_training,
    compare_padded,
)
from toolkit.testing.memory import LargestTensor
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
    "check_identity",
    "check_layers",
    "check_merging",
    "check_method",
    "check_padding",
    "check_padding_in_statistics",
    "check_padding_in_training",
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
