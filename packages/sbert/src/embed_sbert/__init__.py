"""Sentence-transformers models and losses for embed."""

__version__ = "0.1.0"
