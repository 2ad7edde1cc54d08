#!/usr/bin/env python
"""Your own sounds: a folder with a folder a class, or a CSV or JSONL table.

    python recipes/YourSounds/train.py hparams/lora.yaml
    python recipes/YourSounds/train.py hparams/lora.yaml --data_folder DIR

Without a folder it runs on a miniature of the corpus that the program makes. The methods' files are
those of recipes/ESC50/hparams and of plugins; hparams/recipe.yaml says what this corpus needs.
Every key of recipes/ESC50/hparams/base.yaml can be set, at any depth.
"""

from toolkit.training.command import train

if __name__ == "__main__":
    train(__file__, __doc__)
