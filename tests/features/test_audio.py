"""Decoding: all formats, rates and channel counts; errors name the unreadable file."""

import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.errors import DataError
from toolkit.features import opus
from toolkit.features.audio import read_audio, waveform_blocks
from toolkit.features.audio_file import AudioFile, sounds_below
from toolkit.features.mpeg import mpeg_frames

RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000]
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS"}


def _noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((samples, channels))


def _tone(rate: int, hertz: float, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("suffix", FORMATS)
def test_channels_are_averaged(suffix: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    samples = _noise(16000, channels)
    soundfile.write(path, samples, 16000, subtype=FORMATS[suffix])
    found = read_audio(path, 16000)
    decoded = soundfile.read(path, always_2d=True)[0]
    assert decoded.shape == samples.shape
    assert found.shape == (16000,) and found.dtype == np.float32
    np.testing.assert_allclose(found, decoded.mean(axis=1), atol=1e-6)
    if suffix != "ogg":  # lossless: one 16-bit step
        np.testing.assert_allclose(found, samples.mean(axis=1), atol=2**-15)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_sample_widths(subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    samples = _noise(500)[:, 0]
    soundfile.write(path, samples, 16000, subtype=subtype)
    step = 2**-7 if subtype == "PCM_U8" else 1e-6
    np.testing.assert_allclose(read_audio(path, 16000), samples, atol=step)


@pytest.mark.parametrize("target", [16000, 32000])
@pytest.mark.parametrize("rate", RATES)
def test_resampling_keeps_a_tone(rate: int, target: int, tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    samples = _tone(rate, 1000.0)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    found = read_audio(str(path), target)
    assert found.dtype == np.float32 and abs(len(found) - target) <= 1
    decoded = samples.astype(np.float32)
    reference = decoded if rate == target else soxr.resample(decoded, rate, target)
    np.testing.assert_array_equal(found, reference)
    inner = found[target // 10 : -target // 10].astype(np.float64)  # the ends ring
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(target // 10, len(found)) / target)
    np.testing.assert_allclose(inner, expected[: len(inner)], atol=1e-3)


@pytest.mark.parametrize("rate", [r for r in RATES if r > 16000])
def test_resampling_does_not_alias(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, _tone(rate, 9500.0), rate, subtype="FLOAT")
    inner = read_audio(path, 16000)[1600:-1600]
    assert np.abs(inner).max() < 1e-4


def test_stereo_is_mixed_before_it_is_resampled(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    samples = np.stack([_tone(44100, 500.0), -_tone(44100, 500.0)], axis=1)
    soundfile.write(path, samples, 44100, subtype="FLOAT")
    assert np.abs(read_audio(path, 16000)).max() < 1e-6


def test_one_sample_is_audio(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, [0.25], 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(path, 16000), np.float32([0.25]))


def _cut(source: Path, name: str, keep: int) -> Path:
    path = source.with_name(name)
    path.write_bytes(source.read_bytes()[:keep])
    return path


def _unreadable(folder: Path) -> dict[str, Path]:
    wav, flac, ogg = (folder / f"whole.{suffix}" for suffix in FORMATS)
    for path in (wav, flac, ogg):
        soundfile.write(path, _noise(16000), 16000, subtype=FORMATS[path.suffix[1:]])
    size = flac.stat().st_size
    made = {
        "missing": folder / "missing.wav",
        "folder": folder,
        "no bytes": _cut(wav, "no_bytes.wav", 0),
        "header cut": _cut(wav, "header_cut.wav", 20),
        "header only": _cut(wav, "header_only.wav", 44),
        "flac cut early": _cut(flac, "flac_early.flac", 100),
        "flac cut late": _cut(flac, "flac_late.flac", size - 3),
        "flac cut in half": _cut(flac, "flac_half.flac", size // 2),
        "ogg cut": _cut(ogg, "ogg_cut.ogg", 100),
        "no samples": folder / "no_samples.wav",
        "text": folder / "text.wav",
        "noise": folder / "noise.flac",
        "headerless": folder / "headerless.raw",
        "damaged": folder / "damaged.flac",
        "nan": folder / "nan.wav",
        "infinite": folder / "infinite.wav",
        "too loud for float32": folder / "loud.wav",
    }
    soundfile.write(made["no samples"], [], 16000)
    made["text"].write_text("<html>404: Not Found</html>")
    made["noise"].write_bytes(np.random.default_rng(0).bytes(5000))
    made["headerless"].write_bytes(bytes(5000))
    body = bytearray(flac.read_bytes())
    body[size // 2 : size // 2 + 200] = bytes(200)
    made["damaged"].write_bytes(body)
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("too loud for float32", 1e300)):
        samples = _noise(100, 2)
        samples[50, 1] = value
        soundfile.write(made[name], samples, 16000, subtype="DOUBLE")
    return made


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for what, path in _unreadable(tmp_path).items():
        with pytest.raises(DataError) as caught:
            read_audio(path, 16000)
        message = str(caught.value)
        assert message.startswith(f"{path}: "), what
        assert len(message) > len(f"{path}: ") and "\n" not in message, what


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "there is no such file"),
        ("no samples", "contains no samples"),
        ("header only", "ends early"),
        ("nan", "not finite"),
        ("text", "not recognised"),
    ],
)
def test_the_reason_is_given(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        read_audio(_unreadable(tmp_path)[name], 16000)


def test_a_wav_that_ends_early_is_refused(tmp_path: Path) -> None:
    """libsndfile, like any player, would read the samples that exist, without a word."""
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, _noise(16000), 16000)
    with pytest.raises(DataError, match=r"half.wav: ends early.*32,000 bytes, 14,000 are there"):
        read_audio(_cut(whole, "half.wav", 44 + 2 * 7000), 16000)


CODINGS = [
    (container, subtype)
    for container in soundfile.available_formats()
    for subtype in soundfile.available_subtypes(container)
    if container not in ("RAW", "SD2")
]


@pytest.mark.parametrize(("container", "subtype"), CODINGS, ids="-".join)
def test_every_coding_is_read_whole(container: str, subtype: str, tmp_path: Path) -> None:
    """Also those in which libsndfile cannot seek; the last block of some is filled with silence."""
    path, rate = tmp_path / "clip", {"WVE": 8000, "XI": 44100}.get(container, 16000)
    samples = 0.1 * np.sin(np.arange(60000) / 10)
    try:
        soundfile.write(path, samples, rate, format=container, subtype=subtype)
    except soundfile.LibsndfileError:
        pytest.skip("libsndfile does not write it")
    rate = soundfile.info(path).samplerate  # VOC rounds it
    found = read_audio(path, rate)
    assert 60000 <= len(found) < 61200
    part = read_audio(path, rate, 0.5, 0.75)
    np.testing.assert_allclose(part, found[round(rate / 2) : round(0.75 * rate)], atol=1e-6)
    assert np.abs(found[: len(samples)] - samples).mean() < 0.02


def test_flac_of_unknown_length_is_read_whole(tmp_path: Path) -> None:
    """As programs write it into a pipe."""
    path = tmp_path / "clip.flac"
    soundfile.write(path, _noise(200_000), 16000)
    whole, content = read_audio(path, 16000), bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)  # the number of frames in STREAMINFO
    path.write_bytes(content)
    np.testing.assert_array_equal(read_audio(path, 16000), whole)
    with AudioFile(path) as file:
        assert file.frames is None and file.count_frames() == 200_000


def test_wav_of_unknown_length_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, _noise(5000), 16000)
    whole, content = read_audio(path, 16000), bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)
    np.testing.assert_array_equal(read_audio(path, 16000), whole)


def test_mp3_without_a_count_is_whole_or_refused(tmp_path: Path) -> None:
    """libsndfile then guesses the frames from the first of them, and would stop at its guess."""
    path = tmp_path / "clip.mp3"
    quiet_then_loud = np.concatenate([np.zeros(40000), _noise(200_000)[:, 0]])
    soundfile.write(path, quiet_then_loud, 16000, bitrate_mode="VARIABLE")
    content = path.read_bytes()
    place = content.index(b"Xing")
    path.write_bytes(
        content[: place + 7] + bytes([content[place + 7] & 0xF0]) + content[place + 8 :]
    )
    with open(path, "rb") as file:
        count = mpeg_frames(file)
    assert abs(count - 240_000) < 3 * 1152
    try:
        found = read_audio(path, 16000)
    except DataError as error:
        assert "ends early" in str(error)
    else:
        assert len(found) >= 240_000 - 3 * 1152


def _with_times(content: bytes, by: int) -> bytes:
    """An Ogg stream whose pages of sound are later by some samples."""
    changed = bytearray(content)
    for page in opus._pages(content):
        if page.time > 0:
            changed[page.begin + 6 : page.begin + 14] = struct.pack("<q", page.time + by)
            changed[page.begin + 22 : page.begin + 26] = bytes(4)
            checksum = opus._checksum(bytes(changed[page.begin : page.end]))
            changed[page.begin + 22 : page.begin + 26] = struct.pack("<I", checksum)
    return bytes(changed)


@pytest.mark.parametrize("through_a_pipe", [False, True])
def test_opus_whose_clock_begins_late_is_read(through_a_pipe: bool, tmp_path: Path) -> None:
    """As ffmpeg cuts it without encoding it anew; libsndfile calls it malformed."""
    path = tmp_path / "clip.opus"
    soundfile.write(path, _noise(48000 * 3), 48000, format="OGG", subtype="OPUS")
    whole, content = read_audio(path, 48000), path.read_bytes()
    assert _with_times(content, 0) == content  # the checksums are those of the encoder
    path.write_bytes(_with_times(content, -20_000))
    with pytest.raises(soundfile.LibsndfileError, match="malformed"):
        soundfile.SoundFile(path)
    if not through_a_pipe:
        np.testing.assert_array_equal(read_audio(path, 48000), whole)
        return
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        found = read_audio(f"/dev/fd/{cat.stdout.fileno()}", 48000)
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_descriptor_of_a_pipe_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, _noise(3000), 16000)
    reading, writing = os.pipe()
    try:
        os.write(writing, path.read_bytes())
        os.close(writing)
        found = read_audio(f"/dev/fd/{reading}", 16000)
    finally:
        os.close(reading)
    np.testing.assert_array_equal(found, read_audio(path, 16000))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_blocks_are_the_whole(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, _noise(300_000, 2), rate)
    blocks = list(waveform_blocks(path, 16000))
    whole = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    if rate != 16000:
        whole = soxr.resample(whole, rate, 16000, quality="HQ")
    assert len(blocks) > 2 and max(map(len, blocks)) < 300_000
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_sounds_below_a_folder(tmp_path: Path) -> None:
    for name in ("b.wav", "c/a.FLAC", ".hidden/a.wav", "_odd/a.wav", "c/_a.wav", "note.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "lost").symlink_to("nowhere")
    (tmp_path / "in" / "twin").symlink_to("c", target_is_directory=True)
    (tmp_path / "in" / "c" / "again").symlink_to("..", target_is_directory=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "d.mp3").touch()
    (tmp_path / "other" / "back").symlink_to("../in", target_is_directory=True)
    (tmp_path / "in" / "other").symlink_to("../other", target_is_directory=True)
    found = [str(path.relative_to(tmp_path / "in")) for path in sounds_below(tmp_path / "in")]
    assert found == ["b.wav", "c/a.FLAC", "lost", "other/d.mp3", "twin/a.FLAC"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), suffix=st.sampled_from(["wav", "flac", "ogg"]))
def test_damaged_bytes_never_crash(data: st.DataObject, suffix: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole.{suffix}"
    if not whole.exists():
        soundfile.write(whole, _noise(4000), 16000, subtype=FORMATS[suffix])
    body = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    damaged = tmp_path / f"damaged.{suffix}"
    damaged.write_bytes(body[: data.draw(st.integers(0, len(body)))])
    try:
        samples = read_audio(damaged, 16000)
    except DataError as error:
        assert str(damaged) in str(error)
    else:
        assert samples.ndim == 1 and np.isfinite(samples).all()


def test_real_recordings(real_data: Path) -> None:
    path = sorted((real_data / "ESC-10" / "audio").iterdir())[0]
    info = soundfile.info(path)
    assert (info.samplerate, info.channels) == (44100, 1)
    assert abs(len(read_audio(path, 16000)) - info.frames * 16000 / 44100) < 1
    digit = sorted((real_data / "spoken-digits" / "zero").glob("*.wav"))[0]
    assert len(read_audio(digit, 16000)) == 2 * soundfile.info(digit).frames
