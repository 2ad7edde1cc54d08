"""Train with a recipe, or copy it to edit it: `toolkit train`, `toolkit copy-recipe`."""

import argparse
from pathlib import Path

from toolkit.cli.parser import Commands


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the commands `train` and `copy-recipe`."""
    train = commands.add_parser(
        "train",
        parents=[common],
        help="train with a recipe",
        epilog="Further options, after the method, are keys of the recipe's configuration, such as "
        "--epochs 20 --peft.slots 2 --data_folder DIR; without a data folder the recipe trains its "
        "embedded demonstration.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="such as ESC50, or a recipe's folder")
    train.add_argument("method", metavar="METHOD", help="such as softmoa, or a YAML file")
    train.set_defaults(run=train_recipe, takes_settings=True, project=project_of)

    copy = commands.add_parser(
        "copy-recipe", parents=[common], help="copy a recipe's train.py and hparams/ to edit them"
    )
    copy.add_argument("recipe", metavar="RECIPE", help="such as ESC50")
    copy.add_argument("place", type=Path, nargs="?", default=Path(), help="default: this folder")
    copy.set_defaults(run=copy_recipe)


def project_of(options: argparse.Namespace) -> list[Path]:
    """The plugins of the project that is trained with."""
    from toolkit import recipes

    return recipes.project(options.recipe, options.method)


def train_recipe(options: argparse.Namespace) -> None:
    """`toolkit train RECIPE METHOD`."""
    from toolkit import recipes

    recipes.train(options.recipe, options.method, options.settings, options.plugins)


def copy_recipe(options: argparse.Namespace) -> None:
    """`toolkit copy-recipe RECIPE [PLACE]`."""
    from toolkit import recipes

    train, hparams = recipes.copy(options.recipe, options.place)
    print(f"wrote {train}\nwrote {hparams}")
    print(f"try:  python {train} hparams/lora.yaml --debug")
