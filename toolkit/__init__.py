"""A modular toolkit for adapting frozen audio transformers, with registries for every part."""

__version__ = "0.1.0"
