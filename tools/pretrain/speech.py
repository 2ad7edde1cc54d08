"""Synthetic speech whose words and sounds are known: espeak-ng's many voices, and flite's.

Both are optional programs (`apt-get install espeak-ng flite`). espeak-ng is driven through its
library, since only the library says which phoneme begins when; flite through its command.
"""

import ctypes
import ctypes.util
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from toolkit.errors import RunError

WORDS = Path(__file__).with_name("words.txt").read_text().split()
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")
LANGUAGES = (
    "af", "bg", "bs", "ca", "cs", "cy", "da", "de", "el", "eo", "es", "es-419", "et", "eu", "fa",
    "fi", "fr-be", "fr-fr", "ga", "hi", "hr", "hu", "hy", "id", "is", "it", "ka", "ko", "ku",
    "la", "lt", "lv", "mk", "ml", "ms", "nb", "ne", "nl", "pl", "pt", "pt-br", "ro", "ru", "sk",
    "sl", "sq", "sr", "sv", "sw", "ta", "te", "tr", "uk", "vi",
)  # fmt: skip
FLITE_VOICES = ("kal16", "awb", "rms", "slt")
PHONEME_EVENT, END_EVENT = 7, 0


@dataclass
class Utterance:
    """Speech [n] at `rate`, the words said, and where each phoneme begins (seconds, mnemonic)."""

    audio: NDArray[Any]
    rate: int
    words: list[str]
    phonemes: list[tuple[float, str]]
    voice: str


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Espeak:
    """The espeak-ng library. It keeps global state: one instance per process."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise RunError("synthetic speech needs espeak-ng: `apt-get install espeak-ng`")
        self.library = ctypes.CDLL(name)
        synchronous, phoneme_events = 2, 1
        self.rate = self.library.espeak_Initialize(synchronous, 0, None, phoneme_events)
        self.variants = _variants()
        self._callback = _CALLBACK(self._receive)  # kept, or it would be collected
        self.library.espeak_SetSynthCallback(self._callback)
        self._audio: list[NDArray[np.int16]] = []
        self._phonemes: list[tuple[float, str]] = []

    def say(self, words: list[str], language: str, rng: np.random.Generator) -> Utterance:
        """Say the words in a random variant of the voice, at a random speed and pitch."""
        voice = f"{language}+{rng.choice(self.variants)}"
        self._audio, self._phonemes = [], []
        if self.library.espeak_SetVoiceByName(voice.encode()):
            voice = language
            self.library.espeak_SetVoiceByName(voice.encode())
        speed, pitch, spread = rng.integers(110, 230), rng.integers(15, 90), rng.integers(20, 90)
        for parameter, value in ((1, speed), (3, pitch), (4, spread)):
            self.library.espeak_SetParameter(parameter, int(value), 0)
        text = " ".join(words).encode() + b"\0"
        utf8, character = 1, 1
        self.library.espeak_Synth(text, len(text), 0, character, 0, utf8, None, None)
        audio = np.concatenate([*self._audio, np.zeros(1, np.int16)]).astype(np.float32) / 32768
        return Utterance(audio, self.rate, words, self._phonemes, voice)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self._audio.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != END_EVENT:
            if events[index].type == PHONEME_EVENT:
                at = events[index].audio_position / 1000
                self._phonemes.append((at, events[index].string.decode("utf-8", "ignore")))
            index += 1
        return 0


def _variants() -> list[str]:
    """Names of espeak-ng's voice variants, without `fast_test`, which is not a voice."""
    listed = subprocess.run(
        ["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1].split("/")[-1] for line in listed.splitlines()[1:]]
    return sorted({name for name in names if name and not name.startswith("fast_test")})


def say_with_flite(word: str, rng: np.random.Generator) -> Utterance:
    """Say one word with one of flite's recorded voices, at a random speed and pitch."""
    if shutil.which("flite") is None:
        raise RunError("synthetic speech needs flite: `apt-get install flite`")
    voice = str(rng.choice(FLITE_VOICES))
    pitch = {"slt": 180, "awb": 120}.get(voice, 105) * rng.uniform(0.85, 1.2)
    with tempfile.NamedTemporaryFile(suffix=".wav") as target:
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={rng.uniform(0.8, 1.3)}"]
        command += ["--setf", f"int_f0_target_mean={pitch}", "-t", word, "-o", target.name]
        subprocess.run(command, check=True)
        audio, rate = soundfile.read(target.name, dtype="float32")
    return Utterance(audio, rate, [word], [], f"flite-{voice}")


def trim(utterance: Utterance, margin: float = 0.03, floor: float = 0.02) -> Utterance:
    """Cut the silence before and after the speech to `margin` seconds."""
    loud = np.flatnonzero(np.abs(utterance.audio) > floor * np.abs(utterance.audio).max())
    if not len(loud):
        return utterance
    edge = int(margin * utterance.rate)
    start, stop = max(0, loud[0] - edge), loud[-1] + edge
    utterance.phonemes = [(t - start / utterance.rate, p) for t, p in utterance.phonemes]
    utterance.audio = utterance.audio[start:stop]
    return utterance
