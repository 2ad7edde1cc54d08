"""What a plugin registers, checked against the contract of its kind."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from toolkit.registry import BACKBONES, CORPORA, PEFT, PIPELINES, Registry
from toolkit.testing.checks import check_method
from toolkit.testing.contracts import check_backbone, check_corpus, check_pipeline
from toolkit.testing.matrix import reason_of


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether one registered thing keeps its contract.

    Attributes:
        thing: its kind and name.
        reason: what is broken; empty if nothing is.
    """

    thing: str
    reason: str = ""


CONTRACTS: list[tuple[Registry[Any], Callable[[str], object]]] = [
    (PEFT, check_method),
    (BACKBONES, check_backbone),
    (CORPORA, check_corpus),
    (PIPELINES, check_pipeline),
]


def verdicts(plugin: str) -> Iterator[Verdict]:
    """Check everything that a loaded plugin registers, one after the other.

    Args:
        plugin: name of its folder.
    """
    for registry, check in CONTRACTS:
        for name in registry.names():
            if registry.peek(name).plugin != plugin:
                continue
            thing = f"{registry.kind} '{name}'"
            try:
                check(name)
            except Exception as error:  # a plugin may raise anything
                yield Verdict(thing, reason_of(error))
            else:
                yield Verdict(thing)
