"""Audio files that must be refused by name, and none of which is taken for a whole one."""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bundles import put_bundle
from hostile import Hostile, check_refused
from numpy.typing import NDArray
from programs import ROOT

Prepare = Callable[[Path], object]
CODINGS = {
    "wav": ("WAV", "PCM_16"), "float": ("WAV", "FLOAT"), "adpcm": ("WAV", "MS_ADPCM"),
    "gsm": ("WAV", "GSM610"), "flac": ("FLAC", "PCM_16"), "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"), "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"), "caf": ("CAF", "PCM_16"), "w64": ("W64", "PCM_24"),
    "rf64": ("RF64", "PCM_16"), "svx": ("SVX", "PCM_16"),
}  # fmt: skip
"""What files are written in."""


def noise(samples: int = 48000, channels: int = 1) -> NDArray[np.float64]:
    """The same noise every time, [samples, channels]."""
    return 0.1 * np.random.default_rng(0).standard_normal((samples, channels))


def encoded(coding: str, path: Path, rate: int = 48000) -> bytes:
    """A second of noise in one of `CODINGS`."""
    container, subtype = CODINGS[coding]
    soundfile.write(path, noise(), rate, format=container, subtype=subtype)
    content = path.read_bytes()
    path.unlink()
    return content


def cut(coding: str, keep: float = 0.5) -> Prepare:
    """Writes the first part of a file."""

    def prepare(here: Path) -> None:
        content = encoded(coding, here / "sound")
        (here / "sound").write_bytes(content[: int(keep * len(content))])

    return prepare


def content(of: bytes) -> Prepare:
    """Writes some bytes."""
    return lambda here: (here / "sound").write_bytes(of)


def samples(values: object, rate: int = 16000, subtype: str = "FLOAT") -> Prepare:
    """Writes a WAV of some samples."""
    return lambda here: soundfile.write(
        here / "sound", np.asarray(values), rate, format="WAV", subtype=subtype
    )


def with_one(value: float) -> Prepare:
    """Writes a stereo file of doubles with one odd sample."""
    made = noise(1000, 2)
    made[500, 1] = value
    return samples(made, subtype="DOUBLE")


def wav_of_rate(rate: int) -> Prepare:
    """Writes a WAV whose header has any rate."""

    def prepare(here: Path) -> None:
        made = bytearray(encoded("wav", here / "sound"))
        made[24:28] = struct.pack("<I", rate)
        (here / "sound").write_bytes(made)

    return prepare


def without_pages(last: int) -> Prepare:
    """Writes a Vorbis file without its last pages: every page that is there is whole."""

    def prepare(here: Path) -> None:
        made = encoded("vorbis", here / "sound")
        for _ in range(last):
            made = made[: made.rfind(b"OggS")]
        (here / "sound").write_bytes(made)

    return prepare


def damaged_flac(here: Path) -> None:
    """Writes a FLAC file with a hole in it."""
    made = bytearray(encoded("flac", here / "sound"))
    made[len(made) // 2 :][:500] = bytes(500)
    (here / "sound").write_bytes(made[: len(made) // 2] + bytes(500) + made[len(made) // 2 + 500 :])


def flac_that_promises(here: Path) -> None:
    """Writes a FLAC file whose header promises ten times the frames that it has."""
    made = bytearray(encoded("flac", here / "sound"))
    made[22:26] = struct.pack(">I", 480000)
    (here / "sound").write_bytes(made)


def sound(name: str, prepare: Prepare, *says: str) -> Hostile:
    """A row whose file `sound` is classified."""

    def both(here: Path) -> None:
        prepare(here)
        put_bundle(here)

    return Hostile(name, ["toolkit", "predict", "bundle", "sound"], ["sound: ", *says], both)


TABLE = (
    # Files that end early
    *(
        sound(f"half a file in {coding}", cut(coding), "ends early|cannot be read")
        for coding in CODINGS
    ),
    *(
        sound(f"nine tenths of a file in {coding}", cut(coding, 0.9), "ends early|cannot be read")
        for coding in ("wav", "float", "flac", "vorbis", "opus", "mp3", "aiff", "au", "w64")
    ),
    sound("a WAV of a header alone", cut("wav", 44 / 96044), "ends early"),
    sound("Vorbis without its last page", without_pages(1), "no end mark"),
    sound("Vorbis without its last two pages", without_pages(2), "no end mark"),
    sound("FLAC with a hole", damaged_flac, "cannot be read|can be decoded"),
    sound("FLAC that promises more", flac_that_promises, "cannot be read|can be decoded"),
    # Files that are none
    sound("no bytes", content(b""), "cannot be read"),
    sound("a page of the web", content(b"<html>404: Not Found</html>"), "cannot be read"),
    sound("JSON", content(b'{"error": "not found"}'), "cannot be read"),
    sound("zeros", content(bytes(5000)), "cannot be read"),
    sound("noise", content(np.random.default_rng(0).bytes(5000)), "cannot be read"),
    sound("a video", content(b"\0\0\0\x20ftypisom" + bytes(3000)), "cannot be read"),
    sound("a PNG", content(b"\x89PNG\r\n\x1a\n" + bytes(3000)), "cannot be read"),
    sound("an archive", content(b"PK\x03\x04" + bytes(3000)), "cannot be read"),
    sound("a pointer of git-lfs", content(b"version https://git-lfs.github.com/spec/v1\n"), "read"),
    sound("RIFF without a format", content(b"RIFF\xff\0\0\0WAVEdata\xff\0\0\0"), "cannot be read"),
    sound("an ID3 tag alone", content(b"ID3\x04\0\0\0\0\x7f\x7f" + bytes(300)), "cannot be read"),
    # Samples that no model can read
    sound("no samples", samples([]), "contains no samples"),
    sound("one sample, lost at another rate", samples([0.1], 96000), "no samples at 16000"),
    sound("two samples at 1 MHz", samples([0.1, 0.1], 1_000_000), "no samples at 16000"),
    sound("a sample that is not a number", with_one(np.nan), "not finite"),
    sound("an infinite sample", with_one(np.inf), "not finite"),
    sound("a double beyond float32", with_one(1e300), "not finite"),
    sound("a sample near the largest float", with_one(3e38), "full scale is 1"),
    sound("samples near the largest float", samples(np.full(4000, -3.4e38)), "full scale is 1"),
    sound("samples of 10^12", samples(1e12 * noise(4000)), "full scale is 1"),
    # Rates
    sound("a rate of 1 Hz", wav_of_rate(1), "a sample rate of 1 Hz"),
    sound("a rate of 100 Hz", wav_of_rate(100), "a sample rate of 100 Hz"),
    sound("a rate of 4 GHz", wav_of_rate(2**31 - 1), "sample rate|cannot be read"),
    sound("a rate of 0 Hz", wav_of_rate(0), "cannot be read|sample rate"),
    # What is not a file
    sound("a named pipe", lambda here: os.mkfifo(here / "sound"), "is not a file", "/dev/stdin"),
    sound("a device", lambda here: (here / "sound").symlink_to("/dev/zero"), "is not a file"),
    sound("a terminal", lambda here: (here / "sound").symlink_to("/dev/null"), "is not a file"),
    sound("a link to nothing", lambda here: (here / "sound").symlink_to("no"), "file that is miss"),
    sound("a link to itself", lambda here: (here / "sound").symlink_to("sound"), "symbolic link"),
)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)


@pytest.mark.parametrize("kind", ["mkfifo", "device", "half"])
def test_a_corpus_with_one_is_refused(kind: str, tmp_path: Path, programs: Path) -> None:
    """Before anything is decoded, and without waiting for a pipe."""

    def prepare(here: Path) -> None:
        for name in ("a", "b"):
            (here / "mine" / name).mkdir(parents=True)
            for number in range(6):
                made = noise(400) * (number + 1)
                soundfile.write(here / "mine" / name / f"{number}.wav", made, 16000)
        odd = here / "mine" / "b" / "odd.wav"
        if kind == "mkfifo":
            os.mkfifo(odd)
        elif kind == "device":
            odd.symlink_to("/dev/zero")
        else:
            odd.write_bytes((here / "mine" / "a" / "0.wav").read_bytes()[:400])

    words = ["toolkit", "corpus", "check", "mine", "--as", "folder"]
    row = Hostile(kind, words, ["odd.wav"], prepare)
    check_refused(row, tmp_path / "here", programs, ROOT)


def test_what_comes_through_standard_input_is_read(tmp_path: Path, programs: Path) -> None:
    put_bundle(tmp_path)
    soundfile.write(tmp_path / "a.wav", noise(), 48000)
    done = subprocess.run(
        ["sh", "-c", f"cat a.wav | {programs}/toolkit predict bundle --json a.wav /dev/stdin"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shares = [line.split('"prediction"')[1] for line in done.stdout.splitlines()]
    assert len(shares) == 2 and len(set(shares)) == 1
