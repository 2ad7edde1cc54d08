"""`toolkit experts`: pictures of a mixture on one file, and one page with all of them."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from matplotlib.figure import Figure

from toolkit.bundle import Bundle, load_bundle
from toolkit.errors import ConfigError
from toolkit.features.batch import padded
from toolkit.features.cache import Segment
from toolkit.features.spec import FbankSpec
from toolkit.features.windows import split_windows
from toolkit.files import errors_name, write_atomically
from toolkit.mixtures.view import figures
from toolkit.mixtures.view.collect import LayerView, look, training_record
from toolkit.own_folders import Kind, claimed, require_ours

PAGE = "index.html"
VIEW = Kind(
    "view of experts",
    known_by=((PAGE, "similarity.png"),),
    remedy="choose another folder with `-o`",
)
STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:75em;padding:0 1em}"
    "img{max-width:100%}table{border-collapse:collapse}td,th{padding:.1em .8em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}figure{margin:1.5em 0}"
)


def show_experts(
    bundle_folder: Path,
    file: Path,
    output: Path,
    most: int = 8,
    window: int = 1,
    backbone: str | None = None,
) -> Path:
    """Draw which expert uses which part of a file, layer by layer.

    Args:
        bundle_folder: the bundle of any mixture.
        file: a recording.
        output: folder of the PNGs and of the page.
        most: how many experts to draw per layer: those with the largest load.
        window: number of the window, from 1, in a file longer than the backbone reads.
        backbone: where the backbone's weights are, as for `load_bundle`.

    Returns:
        The page, which includes all pictures.

    Raises:
        ConfigError: the bundle has no mixture or reads no spectrogram, the file has no such window,
            or `most` is below 1.
        DataError: the file cannot be read.
        PlaceError: `output` is there, and is not what an earlier call has drawn.
    """
    require_ours(output, VIEW)
    if most < 1:
        raise ConfigError(f"cannot draw {most} experts per layer; ask for one or more")
    bundle = load_bundle(bundle_folder, backbone)
    spec = bundle.features
    if not isinstance(spec, FbankSpec):
        raise ConfigError(
            f"experts are drawn over a spectrogram, which '{bundle.model.backbone.name}' does not "
            "read: use a bundle of a backbone that does, such as AST"
        )
    frames = bundle.reader.read(Segment(str(file)), spec)
    windows = split_windows(frames, spec.max_length)
    if not 1 <= window <= len(windows):
        raise ConfigError(f"{file} has the windows 1 to {len(windows)}, not {window}")
    (chosen,), _ = padded([windows[window - 1].numpy()], spec)
    views, probabilities = look(bundle, chosen)
    shown = chosen.clone()
    shown[len(frames) - (window - 1) * spec.max_length :] = torch.nan
    pictures = {view.site: figures.draw_layer(view, shown, most) for view in views}
    pictures["similarity"] = figures.draw_similarity(views, most)
    history = training_record(bundle_folder, bundle.info.origin.test_fold)
    training = figures.draw_training(history)
    if training is not None:
        pictures["training"] = training
    top = probabilities.topk(min(3, len(bundle.classes)))
    best = ", ".join(
        f"{bundle.classes[index]} {100 * share:.1f} %"
        for index, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    )
    heading = f"{file.name}, window {window} of {len(windows)}: {best}"
    with claimed(output, VIEW):
        images = {name: _save(figure, output / f"{name}.png") for name, figure in pictures.items()}
        write_atomically(output / PAGE, _page(bundle, heading, views, images))
    return output / PAGE


def _save(figure: Figure, path: Path) -> bytes:
    """Write a PNG; returns its content."""
    with errors_name(path):
        figure.savefig(path, format="png")
    return path.read_bytes()


def _page(
    bundle: Bundle, heading: str, views: Sequence[LayerView], images: dict[str, bytes]
) -> str:
    """The HTML page."""
    method = bundle.info.peft.name
    kinds = list(views[0].weights)
    meaning = "; ".join(f"{kind}: {figures.MEANING[kind]}" for kind in kinds)
    training = (
        _figure("training", images["training"])
        if "training" in images
        else "<p>No record of the training was found beside the bundle (fold.json of its run).</p>"
    )
    parts = [
        f"<h1>Experts of {escape(method)}</h1><p>{escape(heading)}</p>",
        f"<p>{escape(meaning)}. Summed over an expert's slots; colours span the smallest to the "
        "largest weight of a row. Percentages are an expert's share of all tokens' output.</p>",
        "<h2>Layers</h2>",
        _table(views, kinds),
        *(_figure(view.site, images[view.site]) for view in views),
        "<h2>How alike slots are</h2><p>Cosine between the weights over tokens of two slots: 1 off "
        "the diagonal means that both read the same.</p>",
        _figure("similarity", images["similarity"]),
        f"<h2>Training</h2>{training}",
    ]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Experts of "
        f"{escape(method)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _table(views: Sequence[LayerView], kinds: Sequence[str]) -> str:
    """A table of load and of the weight on special tokens, one row per layer."""
    columns = ["layer", "smallest load", "largest load", *(f"{k} on special tokens" for k in kinds)]
    rows = [columns]
    for view in views:
        load = view.load()
        shares = [load.min().item(), load.max().item(), *(view.on_special(k) for k in kinds)]
        rows.append([view.site, *(f"{100 * share:.1f} %" for share in shares)])
    cells = [
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th"] + ["td"] * len(views), rows, strict=True)
    ]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _figure(name: str, png: bytes) -> str:
    """A picture as an element of the page."""
    data = base64.b64encode(png).decode("ascii")
    return f"<figure><img alt='{escape(name)}' src='data:image/png;base64,{data}'></figure>"
