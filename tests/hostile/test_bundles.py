"""Bundles that must be refused: a row for each, and every value of bundle.json made odd."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import FRAMES, rewrite_bundle, saved_bundle, whole_bundle
from hostile import Hostile, check_refused
from programs import ROOT
from safetensors.torch import load, save
from torch import Tensor

from toolkit.bundle import DESCRIPTION, WEIGHTS, load_bundle
from toolkit.bundle.info import hash_of
from toolkit.errors import ToolkitError


def says(text: bytes | str) -> Callable[[Path], object]:
    """A bundle whose bundle.json holds this."""
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: (whole_bundle(folder) / DESCRIPTION).write_bytes(content)


def with_values(method: str = "linear_probe", **changes: Any) -> Callable[[Path], object]:
    """A bundle whose bundle.json says other things, and whose checksum is right."""
    return lambda folder: rewrite_bundle(whole_bundle(folder, method), changes)


def without(key: str) -> Callable[[Path], object]:
    """A bundle whose bundle.json lacks a key."""
    return lambda folder: rewrite_bundle(whole_bundle(folder), {}, without=[key])


def edited(old: str, new: str) -> Callable[[Path], object]:
    """A bundle whose bundle.json was edited by hand."""

    def prepare(folder: Path) -> None:
        file = whole_bundle(folder) / DESCRIPTION
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return prepare


def with_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    """A bundle with other tensors, whose hash is right."""

    def prepare(folder: Path) -> None:
        bundle = whole_bundle(folder)
        tensors = load((bundle / WEIGHTS).read_bytes())
        change(tensors)
        content = save(tensors)
        (bundle / WEIGHTS).write_bytes(content)
        rewrite_bundle(bundle, {"weights_hash": hash_of(content)})

    return prepare


def with_content(content: bytes) -> Callable[[Path], object]:
    """A bundle with these bytes as weights, whose hash is right."""

    def prepare(folder: Path) -> None:
        bundle = whole_bundle(folder)
        (bundle / WEIGHTS).write_bytes(content)
        rewrite_bundle(bundle, {"weights_hash": hash_of(content)})

    return prepare


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A bundle in which something else has the name of a file."""

    def prepare(folder: Path) -> None:
        file = whole_bundle(folder) / name
        file.unlink()
        make(file)

    return prepare


def header(text: str) -> bytes:
    """A file of safetensors with this header and no tensors."""
    return len(text).to_bytes(8, "little") + text.encode()


HEAD = "head.weight"
FEATURES = {
    "sample_rate": 16000, "max_length": FRAMES, "mel_bins": 128, "mean": -4.2677393,
    "std": 4.5689974,
}  # fmt: skip
TOOL = {"name": "mc_moe"}

ROWS: Mapping[str, tuple[Callable[[Path], object], str]] = {
    # bundle.json as a file
    "no folder": (lambda folder: None, "is not a bundle"),
    "a file": (lambda folder: (folder / "bundle").write_text("x"), "is not a bundle"),
    "an empty folder": (lambda folder: (folder / "bundle").mkdir(), "bundle.json"),
    "no description": (replaced(DESCRIPTION, lambda file: None), "No such file"),
    "description is a folder": (replaced(DESCRIPTION, Path.mkdir), "is not a file"),
    "description is a pipe": (replaced(DESCRIPTION, os.mkfifo), "is not a file"),
    "description is endless": (
        replaced(DESCRIPTION, lambda file: file.symlink_to("/dev/zero")), "is not a file",
    ),
    "description is huge": (
        replaced(DESCRIPTION, lambda file: (file.touch(), os.truncate(file, 2**26 + 1))),
        "larger than 64 MiB",
    ),
    "empty": (says(""), "damaged"),
    "a list": (says("[]"), "should hold an object"),
    "a number": (says("3"), "should hold an object"),
    "a text": (says('"bundle"'), "should hold an object"),
    "null": (says("null"), "should hold an object"),
    "cut": (says('{"format": 2, "peft": {'), "damaged"),
    "not JSON": (says("format: 2"), "damaged"),
    "bytes": (says(b"\xff\xfe\x00"), "damaged"),
    "nested": (says("[" * 100_000), "damaged"),
    "a number of 10,000 digits": (says('{"format": ' + "9" * 10_000 + "}"), "damaged"),
    # versions and checksums
    "no format": (without("format"), "has the format None"),
    "a later format": (with_values(format=99), "has the format 99.*the version that wrote it"),
    "a format as text": (with_values(format="2"), "has the format '2'"),
    "no checksum": (edited('"checksum"', '"other"'), "its content is not what was saved"),
    "pooling changed by hand": (edited('"all"', '"mean"'), "its content is not what was saved"),
    "classes swapped by hand": (edited('"dog"', '"cat"'), "its content is not what was saved"),
    "mean changed by hand": (edited("-4.267", "-4.268"), "its content is not what was saved"),
    "the task in an old origin is a text": (
        lambda folder: rewrite_bundle(
            whole_bundle(folder), {"format": 1, "origin": {"multi_label": "no"}}, without=["task"]
        ),
        "origin.multi_label should be bool, not 'no'",
    ),
    # classes, task, pooling
    "no classes": (with_values(classes=[]), "at least one name"),
    "classes are missing": (without("classes"), "'classes' is missing"),
    "classes twice": (with_values(classes=["dog", "dog", "rain"]), "two classes.*dog"),
    "classes in classes": (with_values(classes=[["dog"], "rain", "x"]), r"classes\[0\] should be"),
    "a class is a number": (with_values(classes=[1, 2, 3]), r"classes\[0\] should be str"),
    "a class is null": (with_values(classes=["a", None, "b"]), r"classes\[1\] should be str"),
    "a class is empty": (with_values(classes=["a", "", "b"]), "no empty name"),
    "classes by name": (with_values(classes={"a": 0}), "classes should be list"),
    "one class less": (with_values(classes=["a", "b"]), "head.weight .3, 192."),
    "no task": (without("task"), "'task' is missing"),
    "an unknown task": (with_values(task="counting"), "one of one_class, several_classes"),
    "an unknown pooling": (with_values(pooling="max"), "pooling should be one of mean"),
    "a pooling of prompts": (with_values(pooling="prompts"), "needs a method with prompts"),
    "a pooling that learns": (with_values(pooling="weighted"), "missing: layers.weights"),
    # the method
    "no method": (without("peft"), "'peft' is missing"),
    "a method as text": (with_values(peft="lora"), "peft should be NamedSettings"),
    "a method without a name": (with_values(peft={"rank": 4}), "'name' should be a registered"),
    "an unknown method": (with_values(peft={"name": "lorra"}), "did you mean 'lora'"),
    "another method": (with_values(peft={"name": "lora"}), "do not fit the model"),
    "an unknown setting": (with_values(peft={"name": "lora", "rnk": 4}), "did you mean 'rank'"),
    "a setting of another type": (with_values(peft={"name": "lora", "rank": "x"}), "'rank' must"),
    "a setting out of range": (with_values(peft={"name": "lora", "rank": 0}), "at least 1"),
    "a rank that no memory holds": (
        with_values(peft={"name": "soft_moa", "num_experts": 10**8}), "describes a model with",
    ),
    # the backbone
    "no backbone": (without("backbone"), "'backbone' is missing"),
    "a module of one's own": (with_values(backbone=None), "a module of your own"),
    "an unknown backbone": (with_values(backbone={"name": "ast_tinny"}), "did you mean 'ast_tiny'"),
    "a backbone that has moved": (with_values(backbone={"name": "./gone"}), "neither a folder nor"),
    "a backbone of the hub": (with_values(backbone={"name": "evil/code"}), "neither a folder nor"),
    "an unknown setting of the backbone": (
        with_values(backbone={"name": "ast_tiny", "size": 3}), "unknown setting",
    ),
    "another stride": (with_values(backbone={"name": "ast_tiny", "stride": 8}), "another backbone"),
    "another fingerprint": (with_values(fingerprint="0"), "another backbone"),
    "features as a list": (with_values(features=[16000]), "features should be dict"),
    "no features": (without("features"), "'features' is missing"),
    "no length": (with_values(features={"sample_rate": 16000}), "max_length should be a number"),
    "a length of nothing": (with_values(features=FEATURES | {"max_length": 0}), "max_length"),
    "a length below zero": (with_values(features=FEATURES | {"max_length": -64}), "max_length"),
    "a length of 100 days": (with_values(features=FEATURES | {"max_length": 10**9}), "max_length"),
    "another mean": (with_values(features=FEATURES | {"mean": 0.0}), "mean: 0.0 in the bundle"),
    "another rate": (with_values(features=FEATURES | {"sample_rate": 8000}), "sample_rate: 8000"),
    "a feature more": (with_values(features=FEATURES | {"dither": 1.0}), "dither: 1.0"),
    "features of another kind": (
        with_values(features={"sample_rate": 16000, "max_length": FRAMES}), "mean: not set",
    ),
    # the pipeline
    "an unknown pipeline": (with_values(pipeline={"name": "pcen"}), "--plugins DIR"),
    "a pipeline of other rows": (with_values(pipeline={"name": "waveform"}), "makes waveform rows"),
    "a pipeline as text": (with_values(pipeline="fbank"), "pipeline should be"),
    # what tools did
    "tools by name": (with_values(tools={"tool": TOOL}), "tools should be list"),
    "a tool without a plan": (with_values(tools=[{"tool": TOOL}]), "plan' is missing"),
    "a plan without a tool": (with_values(tools=[{"plan": {}}]), "tool' is missing"),
    "an unknown tool": (with_values(tools=[{"tool": {"name": "x"}, "plan": {}}]), "'x'"),
    "a plan of nothing": (
        with_values("soft_moa", tools=[{"tool": TOOL, "plan": {}}]), "does not fit its model",
    ),
    "an origin as text": (with_values(origin="ESC50"), "origin should be Origin"),
    "a fold as text": (with_values(origin={"test_fold": "two"}), "origin.test_fold should be"),
    # the weights
    "no weights": (replaced(WEIGHTS, lambda file: None), "weights.safetensors"),
    "weights are a folder": (replaced(WEIGHTS, Path.mkdir), "weights.safetensors"),
    "other weights": (replaced(WEIGHTS, lambda file: file.write_bytes(b"x")), "not what was saved"),
    "empty weights": (with_content(b""), "damaged"),
    "weights are text": (with_content(b"weights" * 20), "damaged"),
    "a header that is too long": (with_content(b"\xff" * 16), "damaged"),
    "a header that is no JSON": (with_content(header("{")), "damaged"),
    "a tensor outside of the file": (
        with_content(header('{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}')), "damaged",
    ),
    "a tensor of an unknown type": (
        with_content(header('{"x":{"dtype":"F3","shape":[0],"data_offsets":[0,0]}}')), "damaged",
    ),
    "weights without a tensor": (with_content(header("{}")), "missing: .*head.weight"),
    "a tensor is missing": (with_weights(lambda t: t.pop(HEAD)), f"missing: {HEAD}"),
    "a tensor more": (
        with_weights(lambda t: t.update(more=torch.zeros(1))), "without a place: more",
    ),
    "a tensor of another shape": (
        with_weights(lambda t: t.update({HEAD: torch.zeros(192, 3)})), "of another shape or type",
    ),
    "weights of NaN": (with_weights(lambda t: t[HEAD].fill_(torch.nan)), "not finite numbers"),
    "one infinite weight": (with_weights(lambda t: t[HEAD][0, 0].fill_(torch.inf)), "not finite"),
    "weights of integers": (
        with_weights(lambda t: t.update({HEAD: t[HEAD].int()})), "torch.int32 instead of",
    ),
    "weights of booleans": (
        with_weights(lambda t: t.update({HEAD: t[HEAD] > 0})), "torch.bool instead of",
    ),
    "complex weights": (
        with_weights(lambda t: t.update({HEAD: t[HEAD].to(torch.complex64)})), "complex64 instead",
    ),
}  # fmt: skip

TABLE = [
    Hostile(
        name,
        ["toolkit", "predict", "bundle", "clip.wav"],
        [pattern],
        prepare,
        variables={"HF_HUB_OFFLINE": "1"},
    )
    for name, (prepare, pattern) in ROWS.items()
]


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)


ODD = (None, True, -1, 0, 3.5, float("nan"), 10**30, "", "text", [], [[]], {}, {"name": "x"})
"""Values that each place of bundle.json is given."""


LEGITIMATE = {("peft", "reference"), ("peft", "zero_positions")}
"""Settings of which every value is possible; the checksum keeps them."""


def places() -> list[tuple[str, ...]]:
    """Every key of bundle.json, and every key inside."""
    values = json.loads(saved_bundle()[DESCRIPTION])
    del values["checksum"]
    parts = {key: part for key, part in values.items() if isinstance(part, dict)}
    inside = {(key, name) for key, part in parts.items() for name in part}
    return [*((key,) for key in values), *sorted(inside - LEGITIMATE)]


def made_odd(place: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """What bundle.json says otherwise, and what it lacks, if one place of it is odd."""
    whole = json.loads(saved_bundle()[DESCRIPTION])
    key, *inside = place
    if not inside:
        yield {}, [key]
        yield from (({key: odd}, []) for odd in ODD)
        return
    [name] = inside
    yield {key: {other: value for other, value in whole[key].items() if other != name}}, []
    yield from (({key: whole[key] | {name: odd}}, []) for odd in ODD)


@dataclasses.dataclass(frozen=True)
class Same:
    """What a bundle must still be if it loads."""

    logits: list[list[float]]
    classes: list[str]
    task: str


def seen(bundle: Path) -> Same:
    loaded = load_bundle(bundle)
    features = torch.randn(2, FRAMES, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Same(loaded.model(features).tolist(), loaded.classes, loaded.task.name)


@pytest.mark.parametrize("place", places(), ids=str)
def test_every_value_made_odd_is_refused_or_changes_nothing(
    place: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No exception but the toolkit's own, and no other prediction."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bundle = whole_bundle(tmp_path)
    expected = seen(bundle)
    for changes, missing in made_odd(place):
        (bundle / DESCRIPTION).write_bytes(saved_bundle()[DESCRIPTION])
        rewrite_bundle(bundle, changes, missing)
        try:
            assert seen(bundle) == expected, f"{changes} was believed"
        except ToolkitError as error:
            assert str(error).strip()


@pytest.mark.parametrize("name", [DESCRIPTION, WEIGHTS])
def test_no_byte_changes_unseen(name: str, tmp_path: Path) -> None:
    bundle, content = whole_bundle(tmp_path), saved_bundle()[name]
    for place in range(0, len(content), 41):
        changed = bytearray(content)
        changed[place] ^= 4
        (bundle / name).write_bytes(changed)
        try:
            loaded = load_bundle(bundle)
        except ToolkitError:
            continue
        text = changed.decode()  # between values, white space may change
        assert json.loads(text) == json.loads(content) and loaded.classes
