"""Audio files that are read whole or refused: what libsndfile opens, from disk or from a pipe.

libsndfile reads what is left of a cut file without a word, believes an estimated length of an MP3,
and cannot find its place in some codings. `AudioFile` decodes from the beginning to the end without
seeking back, and compares what it finds with what the header promises.
"""

import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from toolkit import os_errors
from toolkit.errors import DataError
from toolkit.features.mpeg import mpeg_frames
from toolkit.features.opus import with_clock_at_zero

SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf",
    ".w64", ".rf64", ".voc",
)  # fmt: skip
"""Names of audio files end like this where a whole folder is read."""

RATES = (1_000, 1_000_000)  # Hz; outside, a small file would be resampled to gigabytes or nothing
BLOCK_SAMPLES = 1 << 18  # decoded at a time, over all channels
UNKNOWN_FRAMES = 1 << 62  # from here on, libsndfile's number of frames means "not known"
STREAMED_BYTES = 0x7FFFF000  # from here on, a size in a header means "written to a pipe"
MPEG_TOLERANCE = 3 * 1152  # frames that an encoder's padding may take
MPEG_WARM_UP = 32 * 1152
"""Frames decoded before the first one wanted: a decoder that begins in the middle gives silence
until it has seen what its frames refer to."""
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # of the largest page
UNREADABLE = (soundfile.SoundFileError, OSError, TypeError)
"""What soundfile raises for a file that it cannot read (TypeError: headerless `.raw`)."""

DESCRIPTOR = re.compile(r"/dev/stdin|(?:/dev/fd|/proc/self/fd)/(?P<number>\d+)")
SIZES = re.compile(
    r"^ *(?:data|SSND|BODY|riff|Riff size|Data Size|Data length)\s*:? (?P<promised>\d+) "
    r"\(?should be (?P<found>\d+)",
    re.MULTILINE,
)
"""How libsndfile's log of a header tells that the file is shorter than its header says."""


class AudioFile:
    """An audio file, decoded block by block from its beginning to its end.

    Args:
        path: a file in any format that libsndfile reads, or `/dev/stdin`, `/dev/fd/N`.

    Attributes:
        sample_rate: Hz.
        channels: their number.
        frames: how many the header promises; None: it does not say.

    Raises:
        DataError: it is missing, not a file, unreadable, or shorter than its header says; later, of
            `blocks`: it ends before the promised number of frames.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._copy = _copied_pipe(self.path)
        try:
            self._open()
            self._require_complete()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._copy is not None:
            self._copy.close()
        if hasattr(self, "_file"):
            self._file.close()

    def blocks(
        self, start: float | None = None, stop: float | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Decode the file, or the part from `start` to `stop` (seconds); once per file.

        Yields:
            [n, channels] float32 in [-1, 1], n > 0.
        """
        begin = 0 if start is None else round(start * self.sample_rate)
        end = None if stop is None else round(stop * self.sample_rate)
        try:
            position = self._skip(begin)
            while end is None or position < end:
                size = max(BLOCK_SAMPLES // self.channels, 1)
                block = self._decode(size if end is None else min(size, end - position))
                if not len(block):
                    break
                position += len(block)
                yield block
        except UNREADABLE as error:
            raise self._refused(_reason(error)) from None
        self._require_reached(position, end)

    def count_frames(self) -> int:
        """The number of frames; decodes the file if the header does not say."""
        return sum(map(len, self.blocks())) if self.frames is None else self.frames

    def _open(self) -> None:
        source = self._copy if self._copy is not None else os.fsencode(self.path)
        try:
            try:
                self._file = _Sequential(source)
            except soundfile.SoundFileError:
                if not self._mend():
                    raise
                self._file = _Sequential(self._copy)
        except UNREADABLE as error:
            raise self._refused(_reason(error)) from None
        self.sample_rate, self.channels = self._file.samplerate, self._file.channels
        self.frames: int | None = self._file.frames
        if self._file.frames >= UNKNOWN_FRAMES:
            self.frames = None
        elif self._file.format == "MP3":  # libsndfile estimates it unless the file says so
            with self._bytes() as file:
                self.frames = mpeg_frames(file) or self._file.frames

    def _mend(self) -> bool:
        """Turn to a copy that libsndfile reads, if there is a way to make one."""
        with self._bytes() as file:
            if file.read(4) != b"OggS":
                return False
            file.seek(0)
            mended = with_clock_at_zero(file.read())
        if mended is None:
            return False
        self._copy = io.BytesIO(mended)
        return True

    def _require_complete(self) -> None:
        """Refuse impossible rates, and a file that is shorter than its header says."""
        low, high = RATES
        if not low <= self.sample_rate <= high:
            raise self._refused(
                f"has a sample rate of {self.sample_rate} Hz; between {low:,} and {high:,} are read"
            )
        for promised, found in SIZES.findall(self._file.extra_info):
            if int(found) < int(promised) < STREAMED_BYTES:
                raise self._ends_early(f"of {int(promised):,} bytes, {int(found):,} are there")
        if self._file.format == "OGG" and not _ogg_ends(self._tail()):
            raise self._ends_early("its stream has no end mark")

    def _require_reached(self, position: int, end: int | None) -> None:
        """Refuse a file that gave fewer frames than its header promises."""
        if self.frames is None:
            return
        tolerance = MPEG_TOLERANCE if self._is_mpeg else 0
        expected = self.frames if end is None else min(end, self.frames)
        if position < expected - tolerance:
            raise self._ends_early(f"of {self.frames:,} frames, {position:,} can be decoded")

    def _decode(self, frames: int) -> NDArray[np.float32]:
        """The next samples [frames, channels], fewer at the end."""
        samples: NDArray[np.float32]
        if self._file.subtype == "PCM_16":  # numpy's conversion gives the same, and is faster
            stored = self._file.read(frames, dtype="int16", always_2d=True)
            samples = np.multiply(stored, 2.0**-15, dtype=np.float32)
        else:
            samples = self._file.read(frames, dtype="float32", always_2d=True)
        return samples

    def _skip(self, begin: int) -> int:
        """Go to a frame, at most to the end; returns where it is."""
        position = 0
        if begin and self._file.finds_places and self.frames is not None:
            warm_up = MPEG_WARM_UP if self._is_mpeg else 0
            position = int(self._file.seek(max(min(begin, self.frames) - warm_up, 0)))
        while position < begin:
            block = self._decode(min(BLOCK_SAMPLES // self.channels + 1, begin - position))
            if not len(block):
                break
            position += len(block)
        return position

    @property
    def _is_mpeg(self) -> bool:
        return bool(self._file.subtype.startswith("MPEG"))

    def _tail(self) -> bytes:
        with self._bytes() as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * OGG_PAGE_BYTES))
            return file.read()

    def _bytes(self) -> BinaryIO:
        """The undecoded file, at its beginning."""
        if self._copy is None:
            return open(self.path, "rb")
        place = self._copy.seek(0, os.SEEK_CUR)  # which libsndfile reads on from
        self._copy.seek(0)
        content = self._copy.read()
        self._copy.seek(place)
        return io.BytesIO(content)

    def _ends_early(self, how: str) -> DataError:
        return self._refused(
            f"ends early ({how}): fetch it again, or write it anew, such as with "
            "`ffmpeg -i OLD NEW.flac`, if what is left of it is wanted"
        )

    def _refused(self, reason: str) -> DataError:
        return DataError(f"{self.path}: {reason}")


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read without seeking to the place where it already is.

    soundfile does so around every read, which fails in codings such as DWVW and GSM 6.10, and in
    FLAC of unknown length.
    """

    def seekable(self) -> bool:
        """Keep soundfile from seeking."""
        return False

    @property
    def finds_places(self) -> bool:
        """Whether another place than the next can be read."""
        return bool(super().seekable() and not self.subtype.startswith("DWVW"))


def sounds_below(folder: Path) -> list[Path]:
    """The audio files in a folder and the folders below it, sorted; links are followed.

    Links whose target is missing are among them, whatever their name. Names that begin with a dot
    or an underscore are left out.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        if _is_loop(Path(place)):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        files = [Path(place, name) for name in names if not name.startswith((".", "_"))]
        found += [f for f in files if f.suffix.lower() in SUFFIXES or not os.path.exists(f)]
    return sorted(found)


def _is_loop(folder: Path) -> bool:
    """Whether a folder is a link to one of those that it lies in."""
    if not folder.is_symlink():
        return False
    target = os.path.realpath(folder)
    above = folder.absolute().parents
    return any(Path(os.path.realpath(parent)).is_relative_to(target) for parent in above)


def _copied_pipe(path: str) -> BinaryIO | None:
    """A copy, on disk, of what comes through a pipe; None for a file.

    Raises:
        DataError: neither a file nor an open pipe.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise DataError(os_errors.sentence(error)) from None
        linked = os.path.lexists(path)
        missing = "is a link to a file that is missing" if linked else "there is no such file"
        raise DataError(f"{path}: {missing}") from None
    except ValueError:
        raise DataError(f"{path!r}: is not a name of a file") from None
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: is a folder: name the files in it")
    descriptor = DESCRIPTOR.fullmatch(path)
    if descriptor is None or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise DataError(f"{path}: is not a file: save the sound to one, or send it to `/dev/stdin`")
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with os.fdopen(os.dup(int(descriptor["number"] or 0)), "rb") as pipe:
            while block := pipe.read(1 << 20):
                copy.write(block)
        copy.seek(0)
    except OSError as error:
        copy.close()
        raise DataError(f"{path}: {os_errors.sentence(error)}") from None
    return copy


def _reason(error: BaseException) -> str:
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return (
        f"cannot be read: {str(reason).rstrip('.')} (if other programs play it, convert it: "
        "`ffmpeg -i OLD NEW.flac`)"
    )


def _ogg_ends(tail: bytes) -> bool:
    """Whether the last page of an Ogg stream is whole and marked as the last one."""
    place = tail.rfind(b"OggS")
    page = tail[place:]
    if place < 0 or len(page) < 27 or len(page) < 27 + page[26]:
        return False
    table = page[27 : 27 + page[26]]
    return bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(table)
