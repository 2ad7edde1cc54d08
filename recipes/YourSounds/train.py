#!/usr/bin/env python
"""Your own sounds: a folder with one subfolder per class, or a CSV or JSONL table.

    python recipes/YourSounds/train.py hparams/lora.yaml
    python recipes/YourSounds/train.py hparams/lora.yaml --data_folder DIR

Without --data_folder, it runs on a miniature of the corpus, which it generates. Configurations of
methods come from recipes/ESC50/hparams and from plugins; hparams/recipe.yaml adds what this corpus
needs. Every key of recipes/ESC50/hparams/base.yaml can be set on the command line, at any depth.
"""

from toolkit.training.command import train

if __name__ == "__main__":
    train(__file__, __doc__)
