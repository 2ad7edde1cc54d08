"""Any `nn.Module` with a list of blocks as a backbone, by a map of roles.

Separate from the registered families: it has no checkpoint to load and nothing to register.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone, numbered
from toolkit.errors import BackboneError, did_you_mean
from toolkit.features.spec import FeatureSpec

ROLES = (
    "attn.q", "attn.k", "attn.v", "attn.o", "ffn.up", "ffn.down", "mhsa", "ffn",
    "norm.mhsa", "norm.ffn",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RoleMap:
    """Where the parts of a transformer are; all paths are those of `nn.Module.get_submodule`.

    Attributes:
        blocks: path of the `nn.ModuleList` or `nn.Sequential` of blocks, e.g. `"encoder.layers"`.
        roles: role -> path inside a block, e.g. `{"attn.q": "self_attn.q_proj", "ffn": "mlp"}`.
            Known roles are those of `toolkit.backbones.base`. A role may be left out; a method
            that needs it is then refused.
        norm: path of the final layer norm.
        embedding: path of the module whose output enters the first block.
        dim: width d of the tokens; None: that of the final norm.
        prefix_tokens: special tokens in front of the others, such as CLS.
        pre_norm: blocks normalise what enters a sublayer; False: what leaves its residual sum.
    """

    blocks: str
    roles: Mapping[str, str]
    norm: str
    embedding: str
    dim: int | None = None
    prefix_tokens: int = 0
    pre_norm: bool = True


@dataclasses.dataclass(frozen=True)
class OwnSpec(FeatureSpec):
    """Whatever the module's `forward` takes: nothing is decoded, cut, padded or normalised."""

    kind = "own"
    variable = False
    spectral = False

    @property
    def rows(self) -> int:
        """The input is never cut, so there is no limit to state."""
        raise BackboneError(NO_FILES)

    @property
    def width(self) -> int:
        """The input may have any shape, so there is no width to state."""
        raise BackboneError(NO_FILES)

    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The input as it is."""
        return features


NO_FILES = (
    "a module of your own does not say how audio files become its input: make the input yourself "
    "and call the model with it"
)


class OwnBackbone(Backbone):
    """A module of the user's own behind roles.

    Args:
        module: takes one tensor and returns tokens [B, M, d], or an output whose first entry or
            `last_hidden_state` they are.
        parts: where its parts are.

    Raises:
        BackboneError: a path does not exist, an unknown role, or a width that cannot be found.
    """

    def __init__(self, module: nn.Module, parts: RoleMap) -> None:
        unknown = sorted(set(parts.roles) - set(ROLES))
        if unknown:
            raise BackboneError(
                f"unknown roles {', '.join(unknown)}: a map of roles may have {', '.join(ROLES)}"
            )
        odd = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
        if odd:
            raise BackboneError(
                f"{type(module).__name__} has weights of {', '.join(map(str, odd))}: convert it "
                "with `.float()`, and use autocast for speed"
            )
        count = _count(module, parts.blocks)
        _require_parts(module, parts, count)
        super().__init__(
            module,
            name=type(module).__name__,
            features=OwnSpec(sample_rate=0, max_length=0),
            dim=_dim(module, parts),
            blocks=numbered(parts.blocks, count),
            roles=parts.roles,
            norm=parts.norm,
            embedding=parts.embedding,
            prefix_tokens=parts.prefix_tokens,
            pre_norm=parts.pre_norm,
            refused={
                "kv": "its attention is code of your own, which asks for none",
                "reuse": "what its `forward` does between its blocks is code of your own",
            },
        )

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The module's input -> tokens [B, M, d]; lengths are not passed on."""
        output = self.model(features)
        if isinstance(output, Mapping):
            output = output.get("last_hidden_state")
        elif hasattr(output, "last_hidden_state"):
            output = output.last_hidden_state
        elif isinstance(output, tuple | list):
            output = output[0]
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[-1] != self.dim:
            raise BackboneError(
                f"{self.name} must return tokens [B, M, {self.dim}], alone, first in a tuple, or "
                f"as `last_hidden_state`, not {_what(output)}"
            )
        return output


def _count(module: nn.Module, path: str) -> int:
    try:
        blocks = module.get_submodule(path)
    except AttributeError:
        blocks = nn.Identity()
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or len(blocks) == 0:
        raise BackboneError(
            f"'{path}' is not a list of blocks of {type(module).__name__}: name an nn.ModuleList "
            "or an nn.Sequential"
        )
    return len(blocks)


def _what(output: object) -> str:
    return f"{tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def _require_parts(module: nn.Module, parts: RoleMap, blocks: int) -> None:
    """Refuse a map with a path that is not there."""
    inside = [f"{block}.{path}" for block in numbered(parts.blocks, blocks)
              for path in parts.roles.values()]  # fmt: skip
    known = {name for name, _ in module.named_modules(remove_duplicate=False)}
    for path in (parts.norm, parts.embedding, *inside):
        if path not in known:
            raise BackboneError(
                f"{type(module).__name__} has no part '{path}', which the RoleMap names"
                f"{did_you_mean(path, known)}"
            )


def _dim(module: nn.Module, parts: RoleMap) -> int:
    if parts.dim is not None:
        return parts.dim
    try:
        norm = module.get_submodule(parts.norm)
    except AttributeError:
        norm = nn.Identity()
    if not isinstance(norm, nn.LayerNorm):
        raise BackboneError(
            f"the width of {type(module).__name__} cannot be read from '{parts.norm}', which is "
            "not a layer norm: give `dim` in the RoleMap"
        )
    return norm.normalized_shape[-1]
