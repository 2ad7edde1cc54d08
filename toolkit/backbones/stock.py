"""Loading of stock transformers classes: from the hub, from a folder, without weights, or random.

A family says which classes, how its checkpoints differ from them, and where its roles are.
"""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers.utils import logging

from toolkit.backbones.base import Backbone, BackboneSource
from toolkit.backbones.checkpoint import FAULTS, read_config, stock_config, unusable
from toolkit.backbones.extractor import ExtractorKeys, checked_extractor, read_extractor
from toolkit.backbones.hub import hub_is_reachable
from toolkit.backbones.lean import without_unused_parts
from toolkit.backbones.weights import require_finite, require_size, require_weights
from toolkit.errors import BackboneError, ConfigError, first_line, listed
from toolkit.features.spec import FeatureSpec

NOISE = 0.1
"""Standard deviation of what is added to every weight of a tiny backbone."""


class StockSource(BackboneSource, ABC):
    """Base of the sources of a class of transformers.

    Attributes:
        model_class, config_class, extractor_class: the classes of transformers.
        heads: prefixes of checkpoint tensors that the encoder does not use.
        renamed: regular expressions on the names of checkpoint tensors -> their replacement.
        options: settings of the configuration that override the checkpoint's.
        extractor_keys: what becomes of each key of a checkpoint's feature extractor; one without a
            rule is refused.
        tiny_config: the configuration of a small backbone for tests.
        tiny_extractor: settings of its feature extractor.
        tiny_length: frames of 10 ms that it reads.
    """

    model_class: ClassVar[Any]
    config_class: ClassVar[Any]
    extractor_class: ClassVar[Any]
    heads: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[dict[str, str]] = {}
    options: ClassVar[dict[str, Any]] = {}
    extractor_keys: ClassVar[ExtractorKeys] = {}
    tiny_config: ClassVar[dict[str, Any]]
    tiny_extractor: ClassVar[dict[str, Any]] = {}
    tiny_length: ClassVar[int]

    @property
    def checkpoint(self) -> str:
        """Hub id, or a folder written by `save_pretrained`: the setting `source`."""
        source: str = self.as_dict()["source"]
        return source

    @abstractmethod
    def wrap(self, model: Any, extractor: Any, max_length: int) -> Backbone:
        """Put a stock model behind roles.

        Args:
            model: the model with its weights.
            extractor: the feature extractor of its checkpoint.
            max_length: frames of 10 ms that the backbone will read.
        """

    @abstractmethod
    def feature_spec(self, config: Any, extractor: Any, max_length: int) -> FeatureSpec:
        """What a stock model of this configuration reads; the arguments are those of `wrap`.

        Raises:
            ConfigError: it cannot read so many frames.
        """

    def version(self) -> Hashable:
        """Sizes and times of the files of a local checkpoint."""
        place = Path(self.checkpoint)
        files = sorted(place.iterdir()) if place.is_dir() else [place] if place.is_file() else []
        return tuple(
            (str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            for file in files
            for status in [file.stat()]
        )

    def spec(self, max_length: int) -> FeatureSpec:
        """What the backbone reads, from the checkpoint's configuration files alone."""
        config = self._config()
        return self.feature_spec(config, self._extractor(config), max_length)

    def read(self, max_length: int) -> Backbone:
        """The stock model with its weights, behind roles.

        Raises:
            BackboneError: the checkpoint cannot be found, or is not a whole model of this family.
        """
        config = self._config()
        extractor = self._extractor(config)
        shapes = self._without_weights(config)
        if Path(self.checkpoint).is_dir():
            require_weights(Path(self.checkpoint), shapes, self.heads)
        model, info = self._from_pretrained(config)
        lost = [*info["missing_keys"], *(m[0] for m in info["mismatched_keys"])]
        lost = [name for name in lost if name != "masked_spec_embed"]  # of pretraining only
        extra = [k for k in info["unexpected_keys"] if not k.startswith(self.heads)]
        if lost or extra:
            raise BackboneError(
                f"the checkpoint {self.checkpoint} is not a whole {self.model_class.__name__}: "
                f"unknown tensors: {listed(sorted(extra))}; "
                f"missing or of another shape: {listed(sorted(lost))}"
            )
        require_finite(model.state_dict(), self.checkpoint)
        return self.wrap(model.eval(), extractor, max_length)

    def architecture(self, max_length: int) -> Backbone:
        """The backbone on the meta device; a hub id stands for the family's base size."""
        if Path(self.checkpoint).is_dir():
            config = self._config()
            extractor = self._extractor(config)
        else:
            config, extractor = self.config_class(**self.options), self.extractor_class()
        model = self._without_weights(config)
        with torch.device("meta"):
            return self.wrap(model.eval(), extractor, max_length)

    def _config(self) -> Any:
        values = read_config(self.checkpoint)
        return stock_config(self.config_class, values, self.options, self.checkpoint)

    def _extractor(self, config: Any) -> Any:
        """The checkpoint's feature extractor; a folder without one means the family's default."""
        said = read_extractor(self.checkpoint)
        if said is None:
            return self.extractor_class()
        keys = self.extractor_keys
        return checked_extractor(self.extractor_class, said, keys, config, self.checkpoint)

    def _without_weights(self, config: Any) -> Any:
        """The stock model on the meta device."""
        try:
            with torch.device("meta"):
                model = self.model_class(config)
        except FAULTS as error:
            raise unusable(self.checkpoint, error) from None
        require_size(model, self.checkpoint)
        return model

    @classmethod
    def tiny(cls, seed: int = 0, **settings: Any) -> Backbone:
        """A small backbone of this family with random weights, for tests.

        Args:
            seed: seed of the weights.
            settings: settings of the configuration that differ from `tiny_config`.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = cls.config_class(**{**cls.tiny_config, **cls.options, **settings})
            model = cls.model_class(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(NOISE * torch.randn_like(parameter))
        return cls().wrap(model.eval(), cls.extractor_class(**cls.tiny_extractor), cls.tiny_length)

    def _from_pretrained(self, config: Any) -> tuple[Any, dict[str, Any]]:
        """The stock model with its weights, and what transformers says of their names."""
        logging.disable_progress_bar()  # of the weights' loading; a download keeps its own
        before = logging.get_verbosity()
        logging.set_verbosity_error()  # what it reports of names and shapes is said below
        place, name = self.checkpoint, self.model_class.__name__
        try:
            with without_unused_parts():
                found: tuple[Any, dict[str, Any]] = self.model_class.from_pretrained(
                    place,
                    config=config,
                    local_files_only=not hub_is_reachable(),
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    dtype=torch.float32,
                    key_mapping=self.renamed or None,
                    weights_only=True,
                )
        except pickle.UnpicklingError:
            raise BackboneError(
                f"'{place}' holds weights in a pickle with more in it than tensors, which is never "
                "run: ask its authors for a file of safetensors"
            ) from None
        except FAULTS as error:
            raise BackboneError(
                f"{name} cannot be loaded from '{place}' ({first_line(error)}): "
                "without internet use `--backbone ast_tiny` (embedded) or `--backbone PATH` "
                "(a folder that holds the checkpoint)"
            ) from error
        finally:
            logging.set_verbosity(before)
        return found


def require_length(max_length: int, most: int, family: str) -> None:
    """Refuse clips that are longer than a backbone can read.

    Raises:
        ConfigError: `max_length` is more than `most`.
    """
    if max_length > most:
        raise ConfigError(
            f"'max_length' {max_length} is more than the {most} frames of 10 ms that '{family}' "
            f"reads: use `--max_length {most}` or less"
        )
