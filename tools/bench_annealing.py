#!/usr/bin/env python
"""Measure SEER's second stage: fewer experts per token, annealed with the routing's entropy.

    python recipes/ESC50/train.py plugins/topk_moa/topk_moa.yaml --folds 1
    python tools/bench_annealing.py results/ESC50-embedded/topk_moa/10/bundle [--epochs 2]
                                    [--data_folder DIR --corpus NAME] [--text FILE]

No expert is pruned, so that only the second stage is seen. Each row is one use of `toolkit prune
BUNDLE --method seer`: the score on the test fold, experts per token, the mean entropy of the last
epoch, and the norm of the routers' gradient of the task's loss on the training clips. Without
`--data_folder`, the bundle is one of the embedded demonstration.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from toolkit import plugins
from toolkit.bundle import Bundle, load_bundle
from toolkit.config import parse_spec
from toolkit.data.manifest import Corpus
from toolkit.features.cache import default_cache_folder
from toolkit.files import write_atomically
from toolkit.mixtures.tool import MixtureData, run_tool
from toolkit.peft.topk import topk_mixtures
from toolkit.registry import CORPORA, TOOLS

ONE = {"k_schedule": [[0, 1]], "epochs": 0}
CASES: dict[str, dict[str, Any]] = {
    "as trained": {"k_schedule": [], "epochs": 0},
    "k = 1, gate 1": {**ONE, "renormalise": True},
    "k = 1, gate p": ONE,
    "fine-tuned, k as trained": {"k_schedule": []},
    "annealed to k = 1, gate 1": {"renormalise": True},
    "annealed to k = 1, gate p, no entropy": {"lambda_ent": 0.0},
    "annealed to k = 1, gate p (default)": {},
    "annealed to k = 1, gate p, entropy 0.1": {"lambda_ent": 0.1},
}
"""Settings of SEER by what they are called in the table."""


def router_gradient(bundle: Bundle, data: MixtureData) -> float:
    """Norm of the gradient of the task's loss by all routers' weights, summed over the clips."""
    model = bundle.model.eval()
    weights = [mixture.router.linear.weight for mixture in topk_mixtures(model.backbone)]
    totals = [torch.zeros_like(weight) for weight in weights]
    for batch in data.batches(data.calibration):
        features = model.backbone.features.normalise(batch.features, batch.lengths)
        loss = data.objective(batch.labels).loss(model(features, batch.lengths))
        for total, gradient in zip(totals, torch.autograd.grad(loss, weights), strict=True):
            total += len(batch) * gradient
    return torch.stack([total.norm() for total in totals]).norm().item()


def rows(bundle: Path, corpus: Corpus, folder: Path, epochs: int) -> list[list[str]]:
    """The rows of the table."""
    made = []
    with tempfile.TemporaryDirectory() as outputs:
        for name, settings in CASES.items():
            tool = TOOLS.create({"name": "seer", "keep_ratio": 1.0, "epochs": epochs, **settings})
            output = Path(outputs) / str(len(made))
            report = run_tool(tool, bundle, corpus, folder, output)
            changed = load_bundle(output)
            norm = router_gradient(changed, MixtureData.of(changed, corpus, folder))
            entropies = report.found.details["entropy_by_epoch"]
            made.append(
                [
                    name,
                    f"{100 * report.score_after:.1f} %",
                    f"{report.found.active_mean:.2f}",
                    f"{entropies[-1]:.2f}" if entropies else "",
                    f"{norm:.1e}",
                ]
            )
            print(*made[-1], sep="  ", flush=True)
    return made


def run() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--data_folder", type=Path)
    parser.add_argument("--corpus", default="esc50")
    parser.add_argument("--text", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    plugins.load()
    folder, name = options.data_folder, options.corpus
    if folder is None:
        folder, name = default_cache_folder() / "synthetic", "synthetic"
    corpus = CORPORA.create(parse_spec(name))
    head = ["SEER", "score", "experts per token", "entropy", "router's gradient"]
    table = [head, ["---"] * len(head), *rows(options.bundle, corpus, folder, options.epochs)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n"
    print(text)
    if options.text is not None:
        write_atomically(options.text, text)


if __name__ == "__main__":
    run()
