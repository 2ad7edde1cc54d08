"""What a command imports before it does its work."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from bundles import tiny_bundle

NEEDLESS = {"hyperpyyaml", "matplotlib", "optuna", "pandas", "speechbrain", "tensorboard"}
"""What transformers imports by itself, such as accelerate and scipy, is not ours to choose."""


def test_a_prediction_imports_no_training_library(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "linear_probe")
    soundfile.write(tmp_path / "clip.wav", np.zeros(16000, np.float32), 16000)
    script = f"""
import sys
from toolkit.cli import main
main(["predict", {str(bundle)!r}, {str(tmp_path / "clip.wav")!r}])
print("imported:", *sorted({NEEDLESS} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
