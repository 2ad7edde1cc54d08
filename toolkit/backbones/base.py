"""The interface of every backbone: tokens from features, and its parts by role.

A PEFT method is written against roles and never against a particular backbone:

| role | what it is |
|---|---|
| `attn.q` `attn.k` `attn.v` `attn.o` | the attention's projections (linear) |
| `ffn.up` `ffn.down` | the feed-forward's projections (linear) |
| `mhsa` `ffn` | the two sublayers: from normalised input to the branch added to the residual |
| `norm.mhsa` `norm.ffn` | the layer norms before (or after) them |
| `block` | the whole block, tokens to tokens |
| `tokens` | the embedding: features to the first block's tokens (one per backbone) |

Roles also name tensors: they are saved as `blocks.3.attn.q.weight` whatever the stock model calls
them, so that bundles remain readable after a renaming inside transformers.
"""

import copy
import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from toolkit.backbones.quantised import is_quantised, plain, quantise, require_torchao
from toolkit.errors import BackboneError, ConfigError
from toolkit.features.spec import FeatureSpec
from toolkit.padding import TokenContext
from toolkit.settings import Settings, setting

LINEAR_ROLES = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.up", "ffn.down")
Placement = Literal["mhsa", "ffn", "both"]

NOT_IN_SHAPES = (
    "hidden_act", "activation_function", "feat_extract_activation", "feat_extract_norm",
    "layer_norm_eps", "do_stable_layer_norm", "num_attention_heads", "encoder_attention_heads",
    "position_embeddings_type", "max_bucket_distance", "scale_embedding", "squeeze_factor",
    "conv_stride", "frequency_stride", "time_stride", "patch_stride", "spec_size", "window_size",
    "depths", "enable_fusion", "enable_patch_layer_norm",
)  # fmt: skip
"""Keys of stock configurations that change what is computed and that no tensor's shape shows."""

Weights = Literal["float32", "int8"]

WRAPPED = "wrapped"
"""The attribute under which an inserted wrapper keeps the module that it wraps."""


ABILITIES = {
    "tokens": ("takes no further tokens", "choose another method"),
    "kv": ("takes no further keys and values", "choose another method"),
    "reuse": ("cannot start at one of its blocks", "use `reuse: off`"),
}
"""What a backbone may refuse -> how the refusal is put, and what to do then."""


class _Reached(Exception):
    """A pass has come to the module at which `encode_until` stops it."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def unwrapped(module: nn.Module) -> nn.Module:
    """The stock module inside all wrappers that were put around it."""
    while hasattr(module, WRAPPED):
        module = getattr(module, WRAPPED)
    return module


@dataclasses.dataclass(frozen=True)
class Site:
    """One place in a backbone where a method can read, wrap or train.

    Attributes:
        block: number of the block.
        role: one of those in the module's docstring.
        parent, attribute: the module is this attribute of this parent.
        in_dim, out_dim: width of the tokens that enter and leave it.
        windowed: True if it reads windows of a clip, each as if it were a whole clip.
    """

    block: int
    role: str
    parent: nn.Module
    attribute: str
    in_dim: int
    out_dim: int
    windowed: bool = False

    @property
    def module(self) -> nn.Module:
        """The module at this place now: the stock module, or a wrapper around it."""
        module: nn.Module = getattr(self.parent, self.attribute)
        return module

    @property
    def linear(self) -> nn.Linear:
        """The projection that stands there.

        Raises:
            ConfigError: it is not a linear layer.
        """
        module = self.module
        if not isinstance(module, nn.Linear):
            raise ConfigError(
                f"{self.name} is a {type(module).__name__}, and this method needs a linear layer: "
                "choose another method or other targets"
            )
        return module

    def replace(self, module: nn.Module) -> None:
        """Put another module at this place."""
        setattr(self.parent, self.attribute, module)

    @property
    def name(self) -> str:
        """Its name in saved tensors, e.g. `blocks.3.mhsa`."""
        return f"blocks.{self.block}.{self.role}"

    def require_whole_clips(self, what: str) -> None:
        """Refuse `what`, which needs all tokens of a clip, where the module reads windows.

        Raises:
            ConfigError: the module reads windows.
        """
        if self.windowed:
            raise ConfigError(
                f"{what} needs all tokens of a clip in their order, and the {self.role} of this "
                "backbone reads windows of it: use `placement: ffn`"
            )


class Backbone(nn.Module, ABC):
    """A stock encoder, its features and its roles.

    Args:
        model: the stock module with its weights.
        name: the registered name of its family, for messages.
        features: what it reads.
        dim: width d of its output tokens.
        blocks: paths of the blocks in `model`, first to last.
        roles: role -> path inside a block.
        norm: path of the final layer norm in `model`; it may be the last block's own.
        embedding: path of the module that makes the first block's tokens.
        prefix_tokens: number of special tokens before the patches (CLS, distillation).
        pre_norm: True if blocks normalise the input of a sublayer, False if they normalise the sum
            with the residual.
        refused: what cannot be done here -> the reason; the keys are those of `ABILITIES`.
        windowed: roles that read windows of a clip.

    Attributes:
        source: the settings that it was loaded with; None: it was not loaded by a source.
        adapted_by: the method that was applied to it; None: it is as it was loaded.
        prompt_tokens: number of learned tokens that a method has put before the patches.
        tokens, final: the sites of the embedding and of the final norm.
        context: which tokens of the current batch are real, and which were dropped or merged.

    Raises:
        BackboneError: a path of the map does not exist in the model.
    """

    splits_blocks: ClassVar[bool] = False
    """Whether `attend` and `feed` make the halves of a block, so that tokens may merge between."""

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        features: FeatureSpec,
        dim: int,
        blocks: Sequence[str],
        roles: Mapping[str, str],
        norm: str,
        embedding: str,
        prefix_tokens: int = 0,
        pre_norm: bool = True,
        refused: Mapping[str, str] | None = None,
        windowed: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.name, self.features, self.dim = name, features, dim
        self.source: BackboneSource | None = None
        self.adapted_by: str | None = None
        self.prefix_tokens, self.prompt_tokens = prefix_tokens, 0
        self.pre_norm, self.context = pre_norm, TokenContext()
        self._refused = dict(refused or {})
        self._norm, self._norm_in_block = norm, norm.startswith(f"{blocks[-1]}.")
        self._names = {norm: "norm", embedding: "embedding"}
        self.tokens = _site(model, embedding, dim, block=-1, role="tokens")
        self.final = _site(model, norm, dim, block=-1, role="norm")
        self._sites: list[dict[str, Site]] = []
        for number, path in enumerate(blocks):
            block = _find(model, path)
            width = _width(block, roles, dim)
            self._names[path] = f"blocks.{number}"
            places = {"block": _site(model, path, width, number, "block")}
            for role, part in roles.items():
                site = _site(block, part, width, number, role)
                places[role] = dataclasses.replace(site, windowed=role in windowed)
                self._names[f"{path}.{part}"] = site.name
            self._sites.append(places)
        self.stock = frozenset(self.canonical(n) for n in model.state_dict())
        self.fingerprint = self.fingerprint_now()

    @abstractmethod
    def encode(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn normalised features [B, T, F] into tokens [B, M, d] after the final norm.

        Args:
            features: what `FeatureSpec.normalise` returns.
            lengths: real rows of each clip before normalisation [B]; None: no clip is padded.
        """

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode features; a batch may hold several passes over the same clips, one by one."""
        return self.encode(features, self._begin(features, lengths))

    def _begin(self, batch: Tensor, lengths: Tensor | None) -> Tensor | None:
        """Forget what the context says of the batch before; the lengths of all passes."""
        self.context.begin(self.prefix_tokens + self.prompt_tokens)
        if lengths is None:
            return None
        return lengths.to(batch.device).repeat(len(batch) // len(lengths))

    @torch.no_grad()
    def encode_until(self, features: Tensor, lengths: Tensor | None, block: int) -> Tensor:
        """The tokens [B, M, d] that enter a block; nothing above is computed.

        Args:
            features, lengths: as for `encode`.
            block: its number; L: the final norm.

        Raises:
            ConfigError: a pass does not come to this block.
        """
        module = self.entrance(block).module
        handle = module.register_forward_pre_hook(_stop, with_kwargs=True)
        try:
            self(features, lengths)
        except _Reached as reached:
            return reached.tokens
        finally:
            handle.remove()
        raise ConfigError(
            f"a pass through the backbone '{self.name}' does not come to its block {block}: use "
            "`reuse: off`"
        )

    def encode_from(self, tokens: Tensor, lengths: Tensor | None, block: int) -> Tensor:
        """What `forward` returns, from the tokens that enter a block on.

        Args:
            tokens: [B, M, d]; of several passes over the clips, one after the other.
            lengths: real rows of each clip before normalisation [B]; None: no clip is padded.
            block: as for `encode_until`.

        Raises:
            ConfigError: the backbone cannot start there.
        """
        self.require("reuse")
        return self.resume(tokens, self._begin(tokens, lengths), block)

    def resume(self, tokens: Tensor, lengths: Tensor | None, block: int) -> Tensor:
        """What `encode` does with the tokens that enter a block.

        A family overrides it if its blocks take more than tokens, or if something follows the final
        norm; it also sets `context.frames` as `encode` does.
        """
        return self.through_blocks(tokens, block)

    def through_blocks(self, tokens: Tensor, block: int, **options: Any) -> Tensor:
        """Tokens through the blocks from `block` on and through the final norm.

        Args:
            tokens: [B, M, d].
            block: number of the first block; L: the final norm alone.
            options: what each block takes besides tokens.
        """
        for number in range(block, self.depth):
            output = self.site(number, "block").module(tokens, **options)
            tokens = output[0] if isinstance(output, tuple) else output
        normed = self._norm_in_block and block < self.depth
        return tokens if normed else self.final.module(tokens)

    def entrance(self, block: int) -> Site:
        """The site of a block; for L that of the final norm."""
        return self.final if block == self.depth else self.site(block, "block")

    @property
    def needed(self) -> Tensor | None:
        """[B, M], True for the tokens of the present batch on which its result depends; None: all.

        Only a backbone whose attention masks padding does without any.
        """
        return None

    def require(self, ability: str) -> None:
        """Refuse what cannot be done with this backbone.

        Args:
            ability: `tokens` (add tokens), `kv` (add keys and values) or `reuse` (start at a
                block).

        Raises:
            ConfigError: it cannot be done; the message gives the reason.
        """
        if ability in self._refused:
            cannot, remedy = ABILITIES[ability]
            raise ConfigError(
                f"the backbone '{self.name}' {cannot}: {self._refused[ability]}; {remedy}"
            )

    @property
    def width(self) -> int:
        """Width of the tokens of all blocks.

        Raises:
            ConfigError: the widths differ.
        """
        widths = {places["block"].out_dim for places in self._sites}
        if widths != {self.dim}:
            raise ConfigError(
                f"the tokens of the backbone '{self.name}' are not of one width in all blocks "
                f"({', '.join(map(str, sorted(widths)))}): choose a method that adapts each block "
                "separately"
            )
        return self.dim

    @property
    def norm(self) -> nn.Module:
        """The stock final norm without wrappers."""
        return unwrapped(self.final.module)

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self._sites)

    def site(self, block: int, role: str) -> Site:
        """The site of a role in a block.

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
        """Patches (f, t) behind the special tokens, frequency-major; None if there is no grid."""
        return None

    @property
    def heads(self) -> int:
        """Heads of the attention; every backbone that splits its blocks defines it."""
        raise TypeError(f"{type(self).__name__} must define heads")

    def attend(self, block: int, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """The first half of a block: attention and its residual, wrappers included.

        Every backbone that splits its blocks defines it.

        Args:
            block: number of the block.
            tokens: [B, M, d].
            bias: [B, 1, 1, M], added to the logits of the keys; None: nothing is.
        """
        raise TypeError(f"{type(self).__name__} must define attend()")

    def feed(self, block: int, tokens: Tensor) -> Tensor:
        """The second half of a block: feed-forward and its residual; as `attend`."""
        raise TypeError(f"{type(self).__name__} must define feed()")

    def zero_positions(self) -> None:
        """Set the position table to zero, as the papers' reference code does.

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
        """The lasting name of a tensor from its current path inside `model`.

        `layers.3.attention.wrapped.q_proj.wrapped.weight` -> `blocks.3.attn.q.weight`.
        """
        parts = [part for part in path.split(".") if part != WRAPPED]
        for end in range(len(parts), 0, -1):
            name = self._names.get(".".join(parts[:end]))
            if name is not None:
                return ".".join([name, *parts[end:]])
        return ".".join(parts)

    def position(self, path: str) -> int:
        """In which block the module or tensor at a present path inside `model` is.

        Returns:
            its number; L for the final norm; -1 for the embedding, and for whatever else is in no
            block.
        """
        stock = ".".join(part for part in path.split(".") if part != WRAPPED)
        if f"{stock}.".startswith(f"{self._norm}."):
            return self.depth
        head, _, rest = self.canonical(path).partition(".")
        return int(rest.split(".")[0]) if head == "blocks" else -1

    def without_weights(self) -> "Backbone":
        """A copy on the meta device: shapes and roles alone."""
        empty: dict[int, Tensor] = {}
        for parameter in self.parameters():
            empty[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        for buffer in self.buffers():
            empty[id(buffer)] = buffer.to("meta")
        return copy.deepcopy(self, empty)

    def fingerprint_now(self, until: int | None = None) -> str:
        """Hash of the weights, of the features that it reads, and of what else its configuration
        says of its computation; as loaded it is `fingerprint`, which bundles are checked against.

        Args:
            until: leave out the weights from this block on.
        """
        features = dataclasses.asdict(self.features)
        del features["max_length"]  # a choice of the user
        config = getattr(self.model, "config", None)
        said = {key: getattr(config, key) for key in NOT_IN_SHAPES if hasattr(config, key)}
        text = json.dumps([self.weights_fingerprint(until), features, said], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def weights_fingerprint(self, until: int | None = None) -> str:
        """Hash of the weights by lasting names, which bundles of format 1 are checked against.

        Args:
            until: as for `fingerprint_now`.
        """
        digest = hashlib.blake2b(digest_size=16)
        tensors = {
            self.canonical(name): tensor
            for name, tensor in self.model.state_dict().items()
            if until is None or self.position(name) < until
        }
        for name in sorted(tensors):
            kind = "int8" if is_quantised(tensors[name]) else tensors[name].dtype
            tensor = plain(tensors[name])
            digest.update(f"{name} {tuple(tensor.shape)} {kind}".encode())
            if not tensor.is_meta:
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


_READ: dict[Hashable, Backbone] = {}
"""The backbone that was read last, as `BackboneSource.load` keeps it."""


class BackboneSource(Settings, ABC):
    """Settings that say which backbone, and from where; one subclass per family.

    Attributes:
        features: the class of its `FeatureSpec`.
    """

    features: ClassVar[type[FeatureSpec]]

    weights: Weights = setting(
        "float32", "how the frozen linear layers in the blocks are kept; int8 needs torchao"
    )

    def check(self) -> None:
        """Refuse int8 weights where torchao is missing."""
        if self.weights == "int8":
            require_torchao()

    def load(self, max_length: int) -> Backbone:
        """A fresh copy of the backbone with its weights, in eval mode.

        The weights are read once per process: the backbone that was read last is kept on the CPU,
        and every call for the same one copies it.

        Args:
            max_length: frames of 10 ms that it will read.

        Raises:
            BackboneError: the weights cannot be found or do not fit.
        """
        key = (type(self), repr(self), max_length, self.version())
        if key not in _READ:
            _READ.clear()
            _READ[key] = self._read_and_quantised(max_length)
        backbone = copy.deepcopy(_READ[key])
        backbone.source = self
        return backbone

    def _read_and_quantised(self, max_length: int) -> Backbone:
        backbone = self.read(max_length)
        if self.weights == "int8":
            backbone.requires_grad_(False)
            for site in backbone.sites("block"):
                quantise(site.module)
            backbone.fingerprint = backbone.fingerprint_now()
        return backbone

    @abstractmethod
    def read(self, max_length: int) -> Backbone:
        """Read the backbone with its weights from the checkpoint, in eval mode; `load` calls it."""

    def version(self) -> Hashable:
        """What changes when the checkpoint does, so that `load` reads it again."""
        return None

    @abstractmethod
    def architecture(self, max_length: int) -> Backbone:
        """The same backbone on the meta device: shapes and roles without weights or a download."""

    def spec(self, max_length: int) -> FeatureSpec:
        """What the backbone reads, without loading its weights.

        Args:
            max_length: frames of 10 ms that it will read.

        Raises:
            BackboneError: the checkpoint's configuration cannot be found.
            ConfigError: it cannot read so many frames.
        """
        return self.architecture(max_length).features

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int = 0) -> Backbone:
        """A small backbone of this family with random weights, for tests; two blocks."""


def _stop(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    raise _Reached(args[0] if args else options["hidden_states"])


def numbered(path: str, count: int, first: int = 0) -> list[str]:
    """`["layers.0", "layers.1", ...]`: the paths of the blocks in a list of modules."""
    return [f"{path}.{number}" for number in range(first, first + count)]


def _site(root: nn.Module, path: str, dim: int, block: int, role: str) -> Site:
    """The site of the module at `path`; only linear layers change the width d."""
    module = _find(root, path)
    head, _, attribute = path.rpartition(".")
    parent = _find(root, head) if head else root
    in_dim, out_dim = (getattr(module, f"{end}_features", dim) for end in ("in", "out"))
    return Site(block, role, parent, attribute, in_dim, out_dim)


def _width(block: nn.Module, roles: Mapping[str, str], dim: int) -> int:
    """Width of a block's tokens: that of its layer norm, or the backbone's if it has none."""
    for role in ("norm.mhsa", "norm.ffn"):
        norm = _find(block, roles[role]) if role in roles else None
        if isinstance(norm, nn.LayerNorm):
            return norm.normalized_shape[-1]
    return dim


def _find(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise BackboneError(
            f"{type(model).__name__} has no part '{path}': this version of transformers names its "
            "modules differently; install a version in the range that pyproject.toml gives"
        ) from None
