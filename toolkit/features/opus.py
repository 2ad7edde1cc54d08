"""Opus files whose clock begins too late, as `ffmpeg -ss 10 -i a.opus -c copy b.opus` writes them.

The first page of sound then ends at a time (its granule position) before its packets can have been
played. Players do not care, and libsndfile calls such a file malformed. Here its clock is put
forward until the first packet begins at zero.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
HEADER_PAGES = 2  # at least: OpusHead and OpusTags, which may need more


class Page(NamedTuple):
    """A page of an Ogg stream: where it lies, its time, and the packets that end on it."""

    begin: int
    end: int
    time: int
    packets: list[bytes]


def with_clock_at_zero(content: bytes) -> bytes | None:
    """An Opus file whose first packet begins at zero; None if it is another file, or does so."""
    pages = list(_pages(content))
    if len(pages) <= HEADER_PAGES or not content[28:].startswith(b"OpusHead"):
        return None
    sound = [page for page in pages[1:] if page.time > 0]  # -1: no packet ends there
    if not sound:
        return None
    first = sound[0]
    late = sum(map(_samples, first.packets)) - first.time
    if late <= 0:
        return None
    changed = bytearray(content)
    for page in sound:
        changed[page.begin + 6 : page.begin + 14] = struct.pack("<q", page.time + late)
        changed[page.begin + 22 : page.begin + 26] = bytes(4)
        checksum = _checksum(bytes(changed[page.begin : page.end]))
        changed[page.begin + 22 : page.begin + 26] = struct.pack("<I", checksum)
    return bytes(changed)


def _pages(content: bytes) -> Iterator[Page]:
    """The pages, as far as they are whole."""
    begin = 0
    while content[begin : begin + 4] == b"OggS" and len(content) > begin + 27:
        sizes = content[begin + 27 : begin + 27 + content[begin + 26]]
        place = begin + 27 + len(sizes)
        end = place + sum(sizes)
        if end > len(content):
            return
        packets, start = [], place
        for size in sizes:
            place += size
            if size < 255:
                packets.append(content[start:place])
                start = place
        yield Page(begin, end, struct.unpack_from("<q", content, begin + 6)[0], packets)
        begin = end


def _samples(packet: bytes) -> int:
    """How long a packet lasts, in samples of 48 kHz (RFC 6716, 3.1)."""
    if not packet:
        return 0
    mode, count = packet[0] >> 3, (1, 2, 2, 0)[packet[0] & 3]
    if packet[0] & 3 == 3 and len(packet) > 1:
        count = packet[1] & 63
    if mode < 12:
        frame = (480, 960, 1920, 2880)[mode & 3]
    elif mode < 16:
        frame = (480, 960)[mode & 1]
    else:
        frame = (120, 240, 480, 960)[mode & 3]
    return count * frame


def _checksum(page: bytes) -> int:
    """Ogg's CRC-32: zlib's with all bits in the other order, from zero, without the last `not`."""
    mirrored = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
