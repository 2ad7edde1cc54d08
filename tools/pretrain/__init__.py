"""Pretraining of small backbones: the embedded AST, or any backbone on a folder of sounds."""
