"""Bundles of random mixtures, and the commands that change and use them."""

import atexit
import contextlib
import dataclasses
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from toolkit import __version__, backbones
from toolkit.backbones.ast import ASTTiny
from toolkit.bundle import Bundle, BundleInfo, Origin, load_bundle, save_bundle
from toolkit.bundle.info import DESCRIPTION, FORMAT
from toolkit.cli import main
from toolkit.features.pipeline import Pipeline
from toolkit.inference.predict import predict
from toolkit.model import AudioClassifier
from toolkit.registry import CORPORA, PEFT
from toolkit.settings import NamedSettings
from toolkit.task import ONE_CLASS, Task
from toolkit.typed_json import checksum

FRAMES = 64
TINY_CORPUS = {"name": "synthetic", "clips_per_class": 5}


def tiny_bundle(folder: Path, name: str, **settings: Any) -> Path:
    """The bundle of a method on the embedded backbone, whose trained tensors are all random.

    Args:
        folder: gets `bundle` and, in `corpus`, the embedded corpus with five clips per class.
        name: of the method.
        settings: of it.
    """
    manifest = CORPORA.create(TINY_CORPUS).manifest(folder / "corpus")
    source, method = ASTTiny(), PEFT.create({"name": name, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AudioClassifier(source.load(FRAMES), method, len(manifest.classes), "all").eval()
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.05 * torch.randn_like(parameter))
    origin = Origin(test_fold=2)
    return save_bundle(folder / "bundle", model, manifest.classes, ONE_CLASS, origin=origin)


def put_bundle(folder: Path) -> Path:
    """A copy of a `tiny_bundle`, made once per process, in a folder."""
    copy = folder / "bundle"
    shutil.copytree(_bundle(), copy)
    return copy


@functools.cache
def _bundle() -> Path:
    made = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, made)
    return tiny_bundle(made, "linear_probe")


def unsaved_bundle(
    model: AudioClassifier, task: Task = ONE_CLASS, pipeline: Pipeline | None = None
) -> Bundle:
    """A bundle that exists in memory only; it does not say where it comes from."""
    backbone = model.backbone
    info = BundleInfo(
        format=FORMAT,
        toolkit=__version__,
        peft=model.method.named(),
        backbone=NamedSettings(backbone.name, {}),
        fingerprint=backbone.fingerprint,
        features=dataclasses.asdict(backbone.features),
        pooling=model.pooling,
        task=task.name,
        classes=[f"class {number}" for number in range(model.num_classes)],
        weights_hash="",
    )
    return Bundle(model, pipeline, info.classes, task, info)


@functools.cache
def saved_bundle(method: str = "linear_probe") -> dict[str, bytes]:
    """The files of a small bundle, by name."""
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = AudioClassifier(ASTTiny().load(FRAMES), PEFT.create(method), 3, "all").eval()
        origin = Origin("none", "none", 1, 2, "accuracy", 0.5, 3, method_source="0")
        place = Path(folder) / "bundle"
        save_bundle(place, model, ["dog", "rain", "siren"], ONE_CLASS, origin=origin)
        return {file.name: file.read_bytes() for file in place.iterdir()}


def whole_bundle(folder: Path, method: str = "linear_probe") -> Path:
    """The `saved_bundle` as `bundle` in a folder."""
    bundle = folder / "bundle"
    bundle.mkdir()
    for name, content in saved_bundle(method).items():
        (bundle / name).write_bytes(content)
    return bundle


def rewrite_bundle(folder: Path, changes: Mapping[str, Any], without: Sequence[str] = ()) -> None:
    """Change what `bundle.json` says as a program would that knows its format.

    Args:
        folder: the bundle; one of format 1 becomes as bundles of that format were.
        changes: top-level key -> new value.
        without: top-level keys to leave out.
    """
    file = folder / DESCRIPTION
    values = json.loads(file.read_text()) | changes
    values = {key: value for key, value in values.items() if key not in ("checksum", *without)}
    if values.get("format") == 1:
        source = backbones.create(values["backbone"])
        values["fingerprint"] = source.load(values["features"]["max_length"]).weights_fingerprint()
    else:
        values["checksum"] = checksum(values)
    file.write_text(json.dumps(values))


def change_bundle(verb: str, bundle: Path, tool: str, output: str, *options: str) -> Path:
    """`toolkit compress` or `toolkit prune` on a `tiny_bundle`.

    Args:
        verb: compress or prune.
        bundle: where it is.
        tool: the method.
        output: the name of the new bundle, which will lie beside the old one.
        options: settings of the tool as on the command line.
    """
    new, corpus = bundle.with_name(output), bundle.with_name("corpus")
    where = ["--corpus", "synthetic:clips_per_class=5", "--data_folder", str(corpus)]
    main([verb, str(bundle), "--method", tool, "-o", str(new), *where, *options])
    return new


def check_prediction(bundle: Path) -> None:
    """`toolkit predict` on a clip of the corpus beside a `tiny_bundle` or what was made of it."""
    clip, printed = next(bundle.with_name("corpus").rglob("*.wav")), io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["predict", str(bundle), str(clip), "--json"])
    loaded, found = load_bundle(bundle), json.loads(printed.getvalue())["probabilities"]
    expected = next(predict(loaded, [clip])).probabilities
    torch.testing.assert_close(torch.tensor([found[name] for name in loaded.classes]), expected)
    assert abs(sum(found.values()) - 1) < 1e-5
