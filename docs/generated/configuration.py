"""The page of the configuration: every key of `recipes/ESC50/hparams/base.yaml`."""

import dataclasses
import re
import typing
from pathlib import Path

from toolkit.settings import type_name
from toolkit.training.experiment import Options

BASE = Path(__file__).parents[2] / "recipes" / "ESC50" / "hparams" / "base.yaml"
KEY = re.compile(r"(?P<key>\w+):\s*(?P<value>.*?)\s*(?:#.*)?")
COMPOSED = {
    "corpus": "a registered corpus and its settings",
    "backbone": "a registered name, a folder written by `save_pretrained`, or a hub id",
    "peft": "a registered method and its settings",
    "pipeline": "what makes the features; null: the default of the backbone",
    "optimizer": "what makes the optimiser; any class of torch.optim",
    "augment": "augmentations of training batches, in order; `[]`: none",
}
"""Keys that hold more than a plain value."""

INTRODUCTION = """# Configuration

A recipe's configuration is a YAML file. `recipes/ESC50/hparams/base.yaml`, from which this page is
generated, defines all keys and their defaults; the file of a method `extends` it and holds only
what differs:

```yaml
extends: base.yaml
lr: 0.005
peft: {name: soft_moa, num_experts: 7, slots: 1}
```

Values are applied in this order, later ones winning:

1. the file at the end of the chain of `extends`, then the files that extend it;
2. `hparams/recipe.yaml` of the recipe, if it has one (its corpus);
3. `hparams/embedded.yaml`, if no `--data_folder` is given, and in it what `methods` says for the
   method in use;
4. the command line: `--epochs 20 --peft.num_experts 14 --optimizer.weight_decay 0.01`.

An unknown key is refused at every depth, with the nearest known one. `optimizer` takes
`!name:` of an optimiser of `torch.optim` or of a plugin, `augment` takes a list of `!new:` of
`SpecAugment`, `Mixup` or a plugin's; any other key takes what this list of names allows
(`toolkit/config/allowed.py`). `--trust` lifts that for a file you trust. A file has at most
200,000 characters, 10,000 values and 40 levels, aliases counted as what they stand for.

On the command line, text is text: `--data_folder '/data/take #3'` and `--label 2024` arrive as
they were typed. A value in brackets or quotes is read as YAML; `null` is none.
`hyperparams.yaml` in the folder of a run is the complete configuration that it ran with.
"""


def page() -> str:
    """The page, in Markdown."""
    hints = typing.get_type_hints(Options)
    options = {field.name: field for field in dataclasses.fields(Options)}
    lines = [INTRODUCTION]
    for line in BASE.read_text(encoding="utf-8").splitlines():
        match = KEY.fullmatch(line)
        if line.startswith("# ") and len(lines) > 1:
            lines += ["", f"## {line.removeprefix('# ')}", "", *_HEAD]
        elif match is not None:
            key, value = match["key"], match["value"]
            if len(lines) == 1:
                lines += ["", "## What the run is called", "", *_HEAD]
            doc = COMPOSED.get(key) or options[key].metadata["doc"]
            kind = type_name(hints[key]).replace(" | ", " or ") if key in hints else "mapping"
            lines.append(f"| `{key}` | {_code(value)} | {kind} | {doc} |")
    return "\n".join(lines) + "\n"


_HEAD = ["| key | value in base.yaml | type | meaning |", "|---|---|---|---|"]


def _code(value: str) -> str:
    return f"`{value}`" if value else ""
