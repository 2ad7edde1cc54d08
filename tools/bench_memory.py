"""Memory of `toolkit predict` on recordings of hours: what another hour adds to the peak.

    python tools/bench_memory.py [--hours 1 2] [--rate 44100] [--format wav|flac|mp3]

Each recording is classified by a process of its own with a small random bundle; its peak resident
memory is printed, and what it has more than that of the first one.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from toolkit.backbones.ast import ASTTiny
from toolkit.bundle import save_bundle
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT

MINUTE = 60
CHILD = """
import sys
from toolkit import system
from toolkit.cli import main
main(["predict", *sys.argv[1:]])
print(system.peak_memory())
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the recordings, classify each, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--rate", type=int, default=44100, help="Hz")
    parser.add_argument("--format", choices=("wav", "flac", "mp3"), default="wav")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = write_bundle(folder / "bundle")
        first = 0
        for hours in options.hours:
            recording = folder / f"recording.{options.format}"
            write_noise(recording, hours, options.rate)
            peak = peak_of_prediction(bundle, recording)
            first = first or peak
            print(f"{hours:g} h: {peak / 2**20:.0f} MiB, {(peak - first) / 2**20:+.0f} MiB")


def write_bundle(folder: Path) -> Path:
    """A random linear probe on the embedded backbone, which reads ten seconds."""
    torch.manual_seed(0)
    model = AudioClassifier(ASTTiny().load(1024), PEFT.create("linear_probe"), 50, "all").eval()
    return save_bundle(folder, model, [f"class {n}" for n in range(50)], "one_class")


def write_noise(path: Path, hours: float, rate: int) -> None:
    """Write a recording of noise, minute by minute."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        for _ in range(round(60 * hours)):
            file.write(0.1 * rng.standard_normal(MINUTE * rate, np.float32))


def peak_of_prediction(bundle: Path, recording: Path) -> int:
    """The largest resident memory of a process that classifies a recording, in bytes."""
    command = [sys.executable, "-c", CHILD, str(bundle), str(recording)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
