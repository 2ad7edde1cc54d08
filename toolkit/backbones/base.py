"""What every backbone offers: tokens from features, and its parts by role.

A PEFT method is written against roles and never against a particular backbone:

| role | what it is |
|---|---|
| `attn.q` `attn.k` `attn.v` `attn.o` | the attention's projections (linear) |
| `ffn.up` `ffn.down` | the feed-forward's projections (linear) |
| `mhsa` `ffn` | the two sublayers: from normalised input to the branch added to the residual |
| `norm.mhsa` `norm.ffn` | the layer norms before (or after) them |
| `block` | the whole block, tokens to tokens |
| `tokens` | the embedding, features to the first block's tokens (of the backbone, not of a block) |

Roles also name tensors: what is saved is called `blocks.3.attn.q.weight` whatever the stock
model calls it, so that bundles outlive a renaming inside transformers.
"""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from toolkit.errors import BackboneError, ConfigError
from toolkit.settings import Settings

LINEAR_ROLES = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.up", "ffn.down")
Placement = Literal["mhsa", "ffn", "both"]

WRAPPED = "wrapped"
"""The attribute under which an inserted wrapper keeps the module that it wraps."""


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The features a backbone was trained on.

    Attributes:
        kind: `"fbank"` (log-mel frames).
        sample_rate: Hz.
        mel_bins: mel bands F.
        max_length: frames T that the backbone reads; shorter clips are padded, longer ones cut.
        mean, std: normalisation, `(x - mean) / (2 std)`.
    """

    kind: Literal["fbank"]
    sample_rate: int
    mel_bins: int
    max_length: int
    mean: float
    std: float

    def normalise(self, features: Tensor) -> Tensor:
        """Raw log-mel frames [B, T, F] -> the backbone's input, same shape."""
        return (features - self.mean) / (2 * self.std)


@dataclasses.dataclass(frozen=True)
class Site:
    """One place in a backbone where a method can read, wrap or train.

    Attributes:
        block: number of the block.
        role: see the module's docstring.
        parent, attribute: where the module hangs.
        in_dim, out_dim: width of the tokens that enter and leave it.
    """

    block: int
    role: str
    parent: nn.Module
    attribute: str
    in_dim: int
    out_dim: int

    @property
    def module(self) -> nn.Module:
        """What stands there now (the stock module, or a wrapper around it)."""
        return getattr(self.parent, self.attribute)

    def replace(self, module: nn.Module) -> None:
        """Put another module there."""
        setattr(self.parent, self.attribute, module)

    @property
    def name(self) -> str:
        """Its name in saved tensors, e.g. `blocks.3.mhsa`."""
        return f"blocks.{self.block}.{self.role}"


class Backbone(nn.Module, ABC):
    """A stock encoder, its features and its roles.

    Args:
        model: the stock module, its weights loaded.
        name: the registered name of its family, for messages.
        features: what it reads.
        dim: width d of its tokens.
        blocks: path of the list of blocks in `model`.
        roles: role -> path inside a block.
        norm: path of the final layer norm in `model`.
        embedding: path of the module that makes the first block's tokens.
        prefix_tokens: special tokens before the patches (CLS, distillation).

    Attributes:
        prompt_tokens: learned tokens that a method has put between these and the patches.
        tokens, final: the sites of the embedding and of the final norm.

    Raises:
        BackboneError: a path of the map does not exist in the model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        features: FeatureSpec,
        dim: int,
        blocks: str,
        roles: Mapping[str, str],
        norm: str,
        embedding: str,
        prefix_tokens: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.name, self.features, self.dim = name, features, dim
        self.prefix_tokens, self.prompt_tokens = prefix_tokens, 0
        self._names = {norm: "norm", embedding: "embedding"}
        self.tokens = _site(model, embedding, dim, block=-1, role="tokens")
        self.final = _site(model, norm, dim, block=-1, role="norm")
        self._sites: list[dict[str, Site]] = []
        stack = _find(model, blocks)
        for index in range(len(stack)):
            self._names[f"{blocks}.{index}"] = f"blocks.{index}"
            places = {"block": Site(index, "block", stack, str(index), dim, dim)}
            for role, path in roles.items():
                places[role] = _site(stack[index], path, dim, index, role)
                self._names[f"{blocks}.{index}.{path}"] = places[role].name
            self._sites.append(places)
        self.stock = frozenset(self.canonical(n) for n in model.state_dict())
        self.fingerprint = self._fingerprint()

    @abstractmethod
    def encode(self, features: Tensor) -> Tensor:
        """Normalised features [B, T, F] -> tokens [B, M, d] after the final norm."""

    def forward(self, features: Tensor) -> Tensor:
        """See `encode`."""
        return self.encode(features)

    @property
    def norm(self) -> nn.Module:
        """The stock final norm, whatever is wrapped around it."""
        module = self.final.module
        while hasattr(module, WRAPPED):
            module = getattr(module, WRAPPED)
        return module

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self._sites)

    def site(self, block: int, role: str) -> Site:
        """One site.

        Raises:
            ConfigError: this backbone has no such role.
        """
        places = self._sites[block]
        if role not in places:
            raise ConfigError(
                f"the backbone '{self.name}' has no role '{role}' "
                f"(it has {', '.join(places)}); choose another method or other targets"
            )
        return places[role]

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches (f, t) behind the special tokens, in frequency-major order; None for no grid."""
        return None

    def zero_positions(self) -> None:
        """Set the position table to zero, as it is in the papers' reference code.

        Raises:
            ConfigError: this backbone has no position table.
        """
        raise ConfigError(
            f"the backbone '{self.name}' has no position table; set `zero_positions` to false"
        )

    def sites(self, *roles: str) -> Iterator[Site]:
        """The sites of these roles, block by block. `both` stands for `mhsa` and `ffn`."""
        expanded = [r for role in roles for r in (("mhsa", "ffn") if role == "both" else (role,))]
        for block in range(self.depth):
            for role in expanded:
                yield self.site(block, role)

    def canonical(self, path: str) -> str:
        """A tensor's lasting name from its present path inside `model`.

        `layers.3.attention.wrapped.q_proj.wrapped.weight` -> `blocks.3.attn.q.weight`.
        """
        parts = [part for part in path.split(".") if part != WRAPPED]
        for end in range(len(parts), 0, -1):
            name = self._names.get(".".join(parts[:end]))
            if name is not None:
                return ".".join([name, *parts[end:]])
        return ".".join(parts)

    def _fingerprint(self) -> str:
        """Hash of the stock weights as loaded, by lasting names; bundles are checked against it."""
        digest = hashlib.blake2b(digest_size=16)
        tensors = {self.canonical(name): tensor for name, tensor in self.model.state_dict().items()}
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            if not tensor.is_meta:
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


class BackboneSource(Settings, ABC):
    """Settings that say which backbone, and from where; one subclass a family."""

    @abstractmethod
    def load(self, max_length: int) -> Backbone:
        """The backbone with its weights, in eval mode.

        Args:
            max_length: frames T that it shall read.

        Raises:
            BackboneError: the weights cannot be had or do not fit.
        """

    @abstractmethod
    def architecture(self, max_length: int) -> Backbone:
        """The same backbone on the meta device: shapes and roles without weights or a download."""


def _site(root: nn.Module, path: str, dim: int, block: int, role: str) -> Site:
    """The site of the module at `path`; linears say their own widths, all others keep d."""
    module = _find(root, path)
    head, _, attribute = path.rpartition(".")
    parent = _find(root, head) if head else root
    in_dim, out_dim = (getattr(module, f"{end}_features", dim) for end in ("in", "out"))
    return Site(block, role, parent, attribute, in_dim, out_dim)


def _find(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise BackboneError(
            f"{type(model).__name__} has no part '{path}': this version of transformers names its "
            "modules otherwise; install the range that pyproject.toml gives"
        ) from None
