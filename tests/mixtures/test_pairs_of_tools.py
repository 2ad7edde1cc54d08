"""Tools compose: every ordered pair of tools, through the commands, on every mixture.

A pair gives a bundle that predicts and records its statistics, or the second tool is refused in one
sentence that says why, and leaves nothing.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from bundles import TINY_CORPUS, change_bundle, check_prediction, tiny_bundle

from toolkit import plugins
from toolkit.bundle import load_bundle
from toolkit.peft.mixture import mixtures
from toolkit.registry import CORPORA, PEFT, TOOLS
from toolkit.testing import tiny_mixture

plugins.load()

CALIBRATION = ("--calibration-clips", "4")
USES = {
    "mc_moe": ("compress", "mc_moe", "--rest-bits", "4", *CALIBRATION),
    "mc_moe --mu": ("compress", "mc_moe", "--mu", "median", "--backend", "rtn", *CALIBRATION),
    "adapmoe": ("compress", "adapmoe", "--target-active", "1.5", *CALIBRATION),
    "adapmoe --cache": ("compress", "adapmoe", "--cache-slots", "12", *CALIBRATION),
    "seer": ("prune", "seer", "--epochs", "0", *CALIBRATION),
    "seer --epochs": ("prune", "seer", "--epochs", "1", *CALIBRATION),
    "seer to one": (
        "prune", "seer", "--epochs", "0", "--scope", "layer", "--keep-ratio", "0", *CALIBRATION,
    ),
    "single_expert": ("prune", "single_expert"),
}  # fmt: skip
"""How tools are used here: the command, the tool, its settings."""

PRUNABLE = ["dense_moa", "topk_moa", "expert_pruning"]
ROUTED = {name: {"mc_moe", "mc_moe --mu", "adapmoe", "adapmoe --cache"} for name in PRUNABLE}
PRUNING = {"seer", "seer --epochs", "seer to one"}
FIRST = {
    **{name: ROUTED[name] | PRUNING for name in PRUNABLE},
    "soft_moa": {"mc_moe"} | PRUNING,
    "dynmoe": {"mc_moe"},
}
"""The uses that each mixture admits; all others, and every use of another mixture, are refused."""

PACKED = "no other tool has packed or cached"
PRUNE_FIRST = "prune first, then compress"
MANY = "experts left"
CHANGED = "has not been compressed"
SLOTS = "slots"
ONE = "at least two experts|cannot lose any|set fewer `force_widths`|use fewer"
AFTER_PACKING = {
    "mc_moe": PACKED, "mc_moe --mu": PACKED, "seer": PRUNE_FIRST, "seer --epochs": PRUNE_FIRST,
    "seer to one": PRUNE_FIRST, "single_expert": CHANGED,
}  # fmt: skip
AFTER_CACHING = {**AFTER_PACKING, "adapmoe": "a cache", "adapmoe --cache": "a cache"}
AFTER_SKIPPING = {
    name: AFTER_PACKING[name] for name in ("seer", "seer --epochs", "seer to one", "single_expert")
}
REFUSED = {
    "mc_moe": AFTER_PACKING,
    "mc_moe --mu": AFTER_PACKING,
    "adapmoe": AFTER_SKIPPING,
    "adapmoe --cache": AFTER_CACHING,
    "seer": {"single_expert": MANY},
    "seer --epochs": {"single_expert": MANY},
    "seer to one": dict.fromkeys(("mc_moe", "mc_moe --mu", "adapmoe", "adapmoe --cache"), ONE),
}
"""Why the second use (inner key) is refused after the first, where the mixture admits both."""

WITHOUT = {
    "soft_moa": SLOTS,
    "dynmoe": "softmax|no experts can be taken out|has not been compressed",
}
"""Why these mixtures refuse the uses that they do not admit."""

COVERING = [
    ("topk_moa", "mc_moe --mu", "adapmoe --cache"),
    ("topk_moa", "adapmoe", "mc_moe --mu"),
    ("topk_moa", "adapmoe", "adapmoe --cache"),
    ("topk_moa", "adapmoe --cache", "mc_moe"),
    ("topk_moa", "seer", "adapmoe --cache"),
    ("topk_moa", "seer --epochs", "mc_moe"),
    ("topk_moa", "mc_moe", "seer"),
    ("expert_pruning", "seer", "seer"),
    ("expert_pruning", "seer to one", "single_expert"),
    ("dense_moa", "seer to one", "adapmoe"),
    ("dense_moa", "mc_moe", "adapmoe"),
    ("dense_moa", "adapmoe --cache", "single_expert"),
    ("soft_moa", "seer", "mc_moe"),
    ("soft_moa", "mc_moe", "adapmoe"),
    ("dynmoe", "mc_moe", "adapmoe"),
]
"""Pairs that together meet every tool as first and as second, and every kind of mixture."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one corpus and its features, for all tests here."""
    folder = tmp_path_factory.mktemp("shared")
    CORPORA.create(TINY_CORPUS).manifest(folder / "corpus")
    return folder


@pytest.fixture
def folder(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for bundles beside that corpus."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(shared / "cache"))
    (tmp_path / "corpus").symlink_to(shared / "corpus")
    return tmp_path


def bundle_of(folder: Path, method: str) -> Path:
    """A bundle of the method with four experts per mixture, where that is a setting."""
    small = {"num_experts": 4} if method in FIRST and method != "dynmoe" else {}
    return tiny_bundle(folder, method, **small)


def use(name: str, bundle: Path, output: str) -> Path:
    """Use a tool as `USES` says."""
    verb, tool, *options = USES[name]
    return change_bundle(verb, bundle, tool, output, *options)


@contextmanager
def refused(
    reason: str, bundle: Path, output: str, told: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """What happens here ends in one message that gives a reason, and leaves nothing."""
    told.readouterr()
    with pytest.raises(SystemExit) as stopped:
        yield
    message = told.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in message
    assert message.count("error:") == 1 and re.search(reason, message), message
    assert not bundle.with_name(output).exists()


def check_use(bundle: Path) -> None:
    """The bundle predicts by command as in Python, and its mixtures record in both modes."""
    check_prediction(bundle)
    model = load_bundle(bundle).model
    found = mixtures(model.backbone).values()
    features = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        model.train(training)
        model.method.record(model.backbone, True)
        with torch.no_grad():
            model(features)
        assert all(0 < m.experts_per_token() <= m.num_experts for m in found)
        model.method.record(model.backbone, False)


def check_pair(
    folder: Path, method: str, first: str, second: str, told: pytest.CaptureFixture[str]
) -> None:
    """Both tools one after the other, or the reason of the second one."""
    changed = folder / f"after {first}"
    if not changed.exists():
        changed = use(first, folder / "bundle", changed.name)
        check_use(changed)
    output = f"{first}, then {second}"
    admitted = FIRST[method] | ({"single_expert"} if method in PRUNABLE else set())
    reasons = [REFUSED[first].get(second), None if second in admitted else WITHOUT[method]]
    reason = "|".join(filter(None, reasons))
    if not reason:
        check_use(use(second, changed, output))
        return
    with refused(reason, changed, output, told):
        use(second, changed, output)


@pytest.mark.parametrize(("method", "first", "second"), COVERING)
def test_a_pair_of_tools(
    method: str, first: str, second: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle_of(folder, method)
    check_pair(folder, method, first, second, capsys)


@pytest.mark.wide
@pytest.mark.parametrize("method", FIRST)
def test_every_pair_of_tools(method: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundle_of(folder, method)
    for first in USES:
        if first not in FIRST[method]:
            with refused(WITHOUT.get(method, MANY), bundle, first, capsys):
                use(first, bundle, first)
            continue
        for second in USES:
            check_pair(folder, method, first, second, capsys)


OTHERS = [
    name for name in PEFT.names() if name not in FIRST and mixtures(tiny_mixture(name).backbone)
]


@pytest.mark.parametrize("method", OTHERS)
def test_other_mixtures_refuse_every_tool(
    method: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`refused` asserts the exit status, the one message, and that nothing is written."""
    bundle = bundle_of(folder, method)
    for name in USES:
        with refused(".", bundle, name, capsys):
            use(name, bundle, name)


def test_the_table_knows_every_tool() -> None:
    assert {tool for _, tool, *_ in USES.values()} == set(TOOLS.names())
    assert {first for _, first, _ in COVERING} | {"single_expert"} == set(USES)
