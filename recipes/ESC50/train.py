#!/usr/bin/env python
"""ESC-50 and ESC-10: five-fold cross-validation of any PEFT method on any backbone.

    python recipes/ESC50/train.py hparams/softmoa.yaml                    the embedded demonstration
    python recipes/ESC50/train.py hparams/softmoa.yaml --data_folder DIR  ESC-50 as published
    torchrun --nproc_per_node=2 recipes/ESC50/train.py ...                several processes or GPUs

Every key of hparams/base.yaml can be set on the command line, at any depth (--peft.slots 2).
Often used: --download true, --backbone NAME|DIR|HUB_ID, --corpus.esc10 true, --folds 1,3,
--epochs N, --seed N, --device cuda, --precision bf16, --output_folder DIR, --debug, --test_only,
--plugins DIR, --trust.
An interrupted run continues when the same command is run again.
"""

from toolkit.training.experiment import Experiment, main
from toolkit.training.folds import cross_validate


def run(arguments: list[str]) -> None:
    """Train and test as the command line says; without arguments, print the help."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    cross_validate(Experiment.from_command_line(__file__, arguments))


if __name__ == "__main__":
    main(run)
