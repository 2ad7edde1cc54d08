"""The command line of a recipe: what every train.py does."""

from collections.abc import Sequence

from toolkit.training.experiment import Experiment, main
from toolkit.training.folds import cross_validate


def train(recipe_file: str, documentation: str) -> None:
    """Train and test as the command line says; without arguments, print how to use it.

    Args:
        recipe_file: train.py of the recipe.
        documentation: its docstring.
    """

    def run(arguments: Sequence[str]) -> None:
        if not arguments or {"-h", "--help"} & set(arguments):
            print(documentation)
            return
        cross_validate(Experiment.from_command_line(recipe_file, arguments))

    main(run)
