"""Uses of `toolkit predict` that must be refused, or told at the end while the rest is done."""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bundles import put_bundle
from hostile import Hostile, check_refused
from programs import ROOT

NAMES = ("a.wav", "sub/b.wav")


def put_sounds(here: Path, *names: str | bytes) -> None:
    """A bundle, and a second of quiet noise in each of some files."""
    put_bundle(here)
    made = 0.1 * np.random.default_rng(0).standard_normal(16000)
    for name in names or NAMES:
        file = os.path.join(os.fsencode(here), os.fsencode(name))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        soundfile.write(file, made, 16000, format="WAV")


def use(
    name: str,
    words: Sequence[str | bytes],
    *says: str,
    also: Callable[[Path], object] = lambda here: None,
) -> Hostile:
    """A row of `toolkit predict bundle ...` beside two sounds."""

    def prepare(here: Path) -> None:
        put_sounds(here)
        also(here)

    return Hostile(name, ["toolkit", "predict", "bundle", *words], says, prepare)


def make(name: str) -> Callable[[Path], object]:
    """Makes an empty folder."""
    return lambda here: (here / name).mkdir()


def loop(here: Path) -> None:
    """Makes a folder that holds itself, and no sound."""
    (here / "round").mkdir()
    (here / "round" / "again").symlink_to("..", target_is_directory=True)
    (here / "round" / "self").symlink_to(".", target_is_directory=True)
    (here / "a.wav").unlink()
    (here / "sub" / "b.wav").unlink()


TABLE = (
    use("no classes", ["a.wav", "--top", "0"], "--top", "from 1 on"),
    use("fewer than no classes", ["a.wav", "--top", "-1"], "--top", "from 1 on"),
    use(
        "a device of no kind",
        ["a.wav", "--device", "nonsense"],
        "device 'nonsense'",
        "--device cpu",
    ),
    use("a device that is not there", ["a.wav", "--device", "cuda:99"], "device 'cuda:99'"),
    use("a device without a name", ["a.wav", "--device", ""], "device ''"),
    use("a device with a wrong number", ["a.wav", "--device", "cpu:-3"], "device 'cpu:-3'"),
    use("a device of another maker", ["a.wav", "--device", "tpu"], "device 'tpu'"),
    use("a device with letters as number", ["a.wav", "--device", "cpu:x"], "device 'cpu:x'"),
    use("the device of shapes alone", ["a.wav", "--device", "meta"], "device 'meta'"),
    use("a missing file", ["none.wav"], "1 of 1 files", "none.wav: there is no such file"),
    use("a name of no letters", [""], "there is no such file"),
    use("a name of 5,000 letters", ["x" * 5000], "name too long"),
    use("a name of any bytes", [b"caf\xe9.wav"], r"caf\\udce9.wav: there is no such file"),
    use("a name with escapes", ["\x1b[31mred"], "there is no such file"),
    use("a name with a line break", ["a\nb.wav"], "there is no such file"),
    use("an address", ["https://example.org/a.wav"], "there is no such file"),
    use("an empty folder", ["empty"], "empty: holds no audio files", also=make("empty")),
    use("a folder in a circle", ["round"], "round: holds no audio files", also=loop),
    use("a file below a file", ["a.wav/b.wav"], "[Nn]ot a directory"),
    use("a descriptor that is closed", ["/dev/fd/77"], "/dev/fd/77: "),
    use("standard input that holds nothing", ["/dev/stdin"], "/dev/stdin: "),
    use("bundle as sound", ["bundle/bundle.json"], "cannot be read"),
    use("weights as sound", ["bundle/weights.safetensors"], "cannot be read"),
)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)


def run(here: Path, programs: Path, *words: str | bytes) -> tuple[int, list[str], str]:
    """Exit status, lines and errors of `toolkit predict bundle ...`."""
    done = subprocess.run(
        [f"{programs}/toolkit", "predict", "bundle", *words],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    errors = done.stderr.decode("utf-8", "backslashreplace")
    return done.returncode, done.stdout.decode("utf-8").splitlines(), errors


@pytest.mark.parametrize("options", [[], ["--json"], ["--windows"]], ids=str)
def test_one_bad_file_does_not_end_the_job(
    options: list[str], tmp_path: Path, programs: Path
) -> None:
    put_sounds(tmp_path, "a.wav", "b.wav", "c.wav")
    (tmp_path / "b.wav").write_text("no sound")
    status, lines, errors = run(tmp_path, programs, "a.wav", "b.wav", "no.wav", "c.wav", *options)
    assert status == 2
    named = [next(name for name in ("a.wav", "c.wav") if name in line) for line in lines]
    assert named == (
        ["a.wav"] * 2 + ["c.wav"] * 2 if options == ["--windows"] else ["a.wav", "c.wav"]
    )
    assert "2 of 4 files cannot be classified" in errors and "Traceback" not in errors
    assert "b.wav: cannot be read" in errors and "no.wav: there is no such file" in errors


def test_a_folder_stands_for_the_sounds_in_it(tmp_path: Path, programs: Path) -> None:
    put_sounds(tmp_path, "in/b.wav", "in/deep/er/a.flac.WAV", "in/.hidden.wav", "in/note.txt")
    (tmp_path / "in" / "deep" / "up").symlink_to("..", target_is_directory=True)
    status, lines, errors = run(tmp_path, programs, "in", "--json")
    assert status == 0, errors
    assert [json.loads(line)["file"] for line in lines] == ["in/b.wav", "in/deep/er/a.flac.WAV"]


def test_a_folder_with_a_bad_file_names_it(tmp_path: Path, programs: Path) -> None:
    put_sounds(tmp_path, "in/a.wav")
    (tmp_path / "in" / "lost.wav").symlink_to("nowhere.wav")
    status, lines, errors = run(tmp_path, programs, "in")
    assert status == 2 and len(lines) == 1
    assert "1 of 2 files" in errors and "lost.wav: is a link to a file that is missing" in errors


@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
@pytest.mark.parametrize(
    "name",
    [b"caf\xe9.wav", b"a\nb.wav", b"\x1b[2J.wav", "\u2028.wav".encode(), b"-.wav", b" #.wav"],
)
def test_names_of_any_bytes_are_predicted(
    name: bytes, options: list[str], tmp_path: Path, programs: Path
) -> None:
    put_sounds(tmp_path, name)
    status, lines, errors = run(tmp_path, programs, b"./" + name, *options)
    assert status == 0, errors
    assert len(lines) == 1 and lines[0].isprintable()
    if options:
        assert os.fsencode(json.loads(lines[0])["file"]) == b"./" + name
