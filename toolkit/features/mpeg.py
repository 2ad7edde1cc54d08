"""How long an MP3 is: counted from the headers of its frames, for it need not say so itself."""

from typing import BinaryIO

BIT_RATES = {  # kbit/s by (MPEG-1, layer); the index in a header begins at 1
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def mpeg_frames(file: BinaryIO) -> int:
    """The samples per channel of an MPEG audio stream; 0 if it is none, or says so itself.

    Args:
        file: at its beginning, perhaps with an ID3 tag.
    """
    tag = file.read(10)
    place = 0
    if tag[:3] == b"ID3":  # its size has seven bits per byte
        place = 10 + sum(byte << 7 * digit for digit, byte in enumerate(tag[:5:-1]))
    file.seek(place)
    first = file.read(1 << 12)
    says = max(first.find(b"Xing", 0, 200), first.find(b"Info", 0, 200))
    if says >= 0 and len(first) > says + 7 and first[says + 7] & 1:
        return 0
    file.seek(place)
    total = 0
    while (found := _frame(file.read(4))) is not None:
        size, samples = found
        total += samples
        file.seek(size - 4, 1)
    return total


def _frame(header: bytes) -> tuple[int, int] | None:
    """Bytes and samples of the frame with a header; None if it is no header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate, frequency, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or not 1 <= rate <= 14 or frequency == 3:
        return None
    bits = 1000 * BIT_RATES[version == 3, layer][rate - 1]
    hertz = SAMPLE_RATES[version][frequency]
    if layer == 1:
        return (12 * bits // hertz + padding) * 4, 384
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples // 8 * bits // hertz + padding, samples
