"""The classifier: backbone, method, pooling and head, and the one rule for what is saved."""

import functools
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.errors import BundleError, ConfigError, did_you_mean, listed
from toolkit.fewer_tokens.merging import merge_in_blocks
from toolkit.fewer_tokens.patchout import PatchDropper, Patchout
from toolkit.parameters import ParameterCount
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod
from toolkit.reuse import FrozenPart, PooledPart
from toolkit.task import BatchObjective, TaskName, task_named

Pooling = Literal[
    "mean", "patches", "cls", "first", "all", "prompts", "prompts+patches", "weighted"
]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def masked_mean(
    tokens: Tensor, weights: Tensor | None, begin: int = 0, end: int | None = None
) -> Tensor:
    """The mean [B, d] of the real tokens among those from `begin` to `end`; zero if none is real.

    Args:
        tokens: [B, M, d].
        weights: [B, M], what each token counts: True where it is real, or how many patches it
            stands for; None: all the same.
        begin, end: bounds of a slice.
    """
    tokens = tokens[:, begin:end]
    if weights is None:
        return tokens.mean(dim=1)
    factors = weights[:, begin:end, None].to(tokens.dtype)
    return (tokens * factors).sum(dim=1) / factors.sum(dim=1).clamp(min=1)


class WeightedLayers(nn.Module):
    """A learned mean of the tokens of all layers, each averaged over the patches.

    The layers are the input of the first block, the outputs of all blocks but the last, and the
    output of the backbone. Their weights are a softmax that starts uniform (SUPERB, Yang et al.,
    arXiv:2105.01051, section 3).

    Args:
        backbone: adapted; taps at its blocks collect the layers.

    Raises:
        ConfigError: its blocks differ in width.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(backbone.depth + 1))
        self._backbone = (backbone,)  # in a tuple: a reference, not a child
        _ = backbone.width
        self._taps = tuple(insertion.tap(site, self._mean) for site in backbone.sites("block"))

    def _mean(self, tokens: Tensor) -> Tensor:
        backbone = self._backbone[0]
        front = backbone.prefix_tokens + backbone.prompt_tokens
        return masked_mean(tokens, backbone.context.weights(tokens), front)

    def forward(self, tokens: Tensor) -> Tensor:
        """The backbone's output [B, M, d] -> [B, d]."""
        backbone = self._backbone[0]
        front = backbone.prefix_tokens + backbone.prompt_tokens * backbone.context.rate
        last = masked_mean(tokens, backbone.context.output_weights(tokens), front)
        layers = [*(insertion.take(tap) for tap in self._taps), last]
        return torch.einsum("l,lbd->bd", self.weights.softmax(dim=0), torch.stack(layers))


class AudioClassifier(nn.Module):
    """Features -> logits through an adapted backbone.

    Args:
        backbone: frozen, as loaded; the method is applied to it here.
        method: how it is adapted.
        num_classes: C; 0: no head, the model returns pooled tokens [B, d].
        pooling: `mean` (over the patches; `patches` says the same), `cls` (mean of the special
            tokens, e.g. CLS and DIST), `first` (CLS alone), `all` (mean over every token, as the
            papers' code does), with prompts `prompts` or `prompts+patches`, and `weighted` (mean
            over the patches of a learned mean of all layers).
        merge_tokens: tokens that merge into similar ones in every block; None: none does.

    Attributes:
        patchout: drops patches in training; see `drop_patches`.

    Raises:
        ConfigError: the method cannot work on the backbone, the backbone is already adapted,
            there is nothing to pool, or tokens cannot merge.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: PeftMethod,
        num_classes: int,
        pooling: Pooling,
        *,
        merge_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(
                f"there is no pooling {pooling!r}{did_you_mean(pooling, POOLINGS)} "
                f"(known: {', '.join(POOLINGS)})"
            )
        self.method, self.pooling, self.num_classes = method, pooling, num_classes
        self._features_seen = False
        self._reused: FrozenPart | PooledPart | None = None
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise ConfigError(
                f"'num_classes' must be 0 or a whole number above, not {num_classes!r}"
            )
        if pooling in ("cls", "first") and not backbone.prefix_tokens:
            raise ConfigError(
                f"pooling '{pooling}' needs special tokens, which the backbone '{backbone.name}' "
                "does not have; use mean, all or weighted"
            )
        method.apply(backbone)
        if pooling.startswith("prompts") and not backbone.prompt_tokens:
            raise ConfigError(
                f"pooling '{pooling}' needs a method with prompts, which "
                f"'{method.registered_name}' is not; use mean, cls, first or all"
            )
        if merge_tokens is not None:
            merge_in_blocks(backbone, merge_tokens)
        self.backbone, self.merge_tokens = backbone, merge_tokens
        self.patchout: PatchDropper | None = None
        self.layers = WeightedLayers(backbone) if pooling == "weighted" else None
        self.head: nn.Module = (
            nn.Linear(backbone.dim, num_classes) if num_classes else nn.Identity()
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`; a failure inside a module that the method inserted names method and site."""
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            raise insertion.named_failure(self.backbone, error) from error.__cause__

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised features -> logits [B, C]; `logits` takes rows that are not normalised.

        Args:
            features: [B, T, F]; of several passes over the clips, one after the other. After
                `reuse` what `collate` of the frozen part returns.
            lengths: real rows of each clip before normalisation [B]; None: no clip is padded.

        Raises:
            ConfigError: the features of the first pass are rows that were not normalised.
        """
        logits: Tensor = self.head(self._pooled(features, lengths))
        return logits

    def _pooled(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        if isinstance(self._reused, PooledPart):
            return self._reused.pooled(features)
        return self.pool(self._encode(features, lengths))

    def _encode(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        if isinstance(self._reused, FrozenPart):
            return self._reused.resume(features, lengths)
        if not self._features_seen and not torch.compiler.is_compiling():
            self._features_seen = True
            self._refuse_rows(features)
        tokens: Tensor = self.backbone(features, lengths)
        return tokens

    def frozen_part(self) -> FrozenPart:
        """What of the model training cannot change, so that it need be computed once per clip.

        Raises:
            ConfigError: there is none; the message gives the reason.
        """
        part = FrozenPart(self.backbone, self.method)
        self._require_all_tokens(part.block)
        return part

    def pooled_part(self) -> PooledPart:
        """The same, of a model of which the final norm and the head train at most.

        Raises:
            ConfigError: more trains.
        """
        if self.layers is not None:
            raise ConfigError("the weights of the layers train")
        self._require_all_tokens(self.backbone.depth)
        return PooledPart(self.backbone, self.method, self.pool, self.pooling)

    def _require_all_tokens(self, block: int) -> None:
        """Refuse to reuse what is below a block if tokens merge or patches are dropped there."""
        if self.merge_tokens is not None:
            raise ConfigError(
                "tokens that merge in the frozen blocks cannot be reused: set `merge_tokens` to "
                "null, or use `reuse: off`"
            )
        dropped = None if self.patchout is None else self.patchout.patchout.block
        if dropped is not None and dropped < block:
            raise ConfigError(
                f"patchout drops patches in front of block {dropped}, and {block} blocks are "
                "frozen: "
                + ("" if block == self.backbone.depth else f"set `patchout.block` to {block}, or ")
                + "use `reuse: off`"
            )

    @property
    def reads_states(self) -> bool:
        """Whether `forward` takes states in place of features."""
        return self._reused is not None

    def reuse(self, part: FrozenPart | PooledPart | None) -> None:
        """Read the states that a frozen part has computed in place of features from now on.

        Args:
            part: of this model; None: read features again.
        """
        self._reused = part

    def _refuse_rows(self, features: Tensor) -> None:
        readable = features.numel() and not features.is_meta
        if readable and self.backbone.features.are_rows(features.detach()):
            raise ConfigError(
                "these are rows as they are read from audio, and `model(features)` takes "
                "normalised features: call `model.logits(rows, lengths)`, or normalise them first "
                "with `model.backbone.features.normalise(rows, lengths)`"
            )

    def logits(self, rows: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Rows [B, T, F] that are not normalised -> logits [B, C]."""
        self._features_seen = True  # they are normalised here, and those of a quiet clip look raw
        logits: Tensor = self(self.backbone.features.normalise(rows, lengths), lengths)
        return logits

    def drop_patches(self, patchout: Patchout | None) -> None:
        """In train mode, drop patches in front of a block; evaluation always reads all of them.

        Special tokens and prompts are never dropped, and all clips of a batch lose the same
        patches (Koutini et al., arXiv:2110.05069). This replaces an earlier call.

        Args:
            patchout: which patches, and in front of which block; None: none.

        Raises:
            ConfigError: the backbone has no grid of patches, nothing would be dropped, or tokens
                merge below that block.
        """
        if self.patchout is not None:
            self.patchout.remove()
        if patchout is not None and patchout.block and self.merge_tokens is not None:
            raise ConfigError(
                "patches are dropped before tokens merge: set `patchout.block` to 0, or "
                "`merge_tokens` to null"
            )
        self.patchout = None
        if patchout is not None:
            self.patchout = PatchDropper(self.backbone, patchout).train(self.training)

    def loss(
        self,
        rows: Tensor,
        labels: Tensor,
        lengths: Tensor | None = None,
        *,
        task: TaskName,
    ) -> Tensor:
        """The loss of a training batch, with the method's own losses (balance of experts, ...).

        Args:
            rows: [B, T, F], not normalised; see `toolkit.read_clips`.
            labels: [B] class numbers; for several classes per clip [B, C] of 0 and 1.
            lengths: real rows of each clip [B]; None: no clip is padded.
            task: `"one_class"`, or `"several_classes"` if a clip may have any number of them.

        Returns:
            a scalar.

        Raises:
            ConfigError: no such task, labels that are not of this task, or no head.
        """
        asked = task_named(task)
        if not self.num_classes:
            raise ConfigError("a model without a head has no loss: adapt with `num_classes`")
        asked.check_labels(labels, self.num_classes)
        self._features_seen = True
        features = self.backbone.features.normalise(rows, lengths)
        objective = BatchObjective(asked, asked.targets(labels, self.num_classes))
        forward = functools.partial(self.__call__, lengths=lengths)
        losses = self.method.training_losses(self.backbone, forward, features, objective)
        return torch.stack(list(losses.values())).sum()

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens [B, M, d] of the latest batch -> [B, d]; padding is left out.

        A merged token counts as the patches that it stands for.
        """
        context = self.backbone.context
        if self.layers is not None:
            mixed: Tensor = self.layers(tokens)
            return mixed
        special = self.backbone.prefix_tokens
        patches = special + self.backbone.prompt_tokens * context.rate
        begin, end = {
            "mean": (patches, None),
            "patches": (patches, None),
            "cls": (0, special),
            "first": (0, 1),
            "all": (0, None),
            "prompts": (special, patches),
            "prompts+patches": (special, None),
        }[self.pooling]
        return masked_mean(tokens, context.output_weights(tokens), begin, end)

    def train(self, mode: bool = True) -> "AudioClassifier":
        """Set the mode of inserted modules and the head; a frozen backbone stays in eval mode."""
        super().train(mode)
        if not self.method.trains_backbone:
            insertion.set_training(self.backbone, mode)
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by lasting name."""
        return {
            self._lasting_name(name): parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, by lasting name.

        These are the trainable parameters, and the buffers of inserted modules (of all modules if
        the whole backbone trains). They are the tensors of the model, detached, not copies; while
        the method is merged, stock tensors are as they are without it.
        """
        unmerged = insertion.unmerged_weights(self.backbone)
        named = ((self._lasting_name(n), t) for n, t in self.state_dict(keep_vars=True).items())
        return {
            name: unmerged.get(id(tensor), tensor).detach()
            for name, tensor in named
            if self._changes(name, tensor)
        }

    def _changes(self, name: str, tensor: Tensor) -> bool:
        if isinstance(tensor, nn.Parameter):
            return tensor.requires_grad
        return self.method.trains_backbone or name not in self.backbone.stock

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Copy tensors that `state` returned into the model; a merged one stays merged.

        Raises:
            BundleError: a tensor is missing, has no place, or is of another shape or type.
        """
        own = self.state()
        missing, extra = sorted(own.keys() - tensors), sorted(tensors.keys() - own)
        wrong = [
            f"{n} {_form(tensors[n])} instead of {_form(own[n])}"
            for n in sorted(own.keys() & tensors)
            if not _fits(tensors[n], own[n])
        ]
        if missing or extra or wrong:
            raise BundleError(
                "these weights do not fit the model: "
                f"missing: {listed(missing)}; without a place: {listed(extra)}; of another shape "
                f"or type: {listed(wrong)}; use the settings that they were trained with"
            )
        merged = insertion.is_merged(self.backbone)
        if merged:
            self.method.unmerge(self.backbone)
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])
        if merged:
            self.method.merge(self.backbone)

    def count(self) -> ParameterCount:
        """Count the parameters of the method, of the head, and of the whole model."""
        parts = [self.head] if self.layers is None else [self.head, self.layers]
        head = sum(p.numel() for part in parts for p in part.parameters())
        trainable = sum(p.numel() for p in self.trainable().values())
        total = sum(p.numel() for p in self.parameters())
        return ParameterCount(method=trainable - head, head=head, total=total)

    def _lasting_name(self, path: str) -> str:
        stock = path.removeprefix("backbone.model.")
        return path if stock == path else self.backbone.canonical(stock)


def _fits(tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor can be copied into another; floats of any precision are of one type."""
    floats = tensor.is_floating_point() and own.is_floating_point()
    return tensor.shape == own.shape and (floats or tensor.dtype == own.dtype)


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"
