"""Qwen3-Embedding and its three-stage curriculum, via ms-swift, for embed."""

__version__ = "0.1.0"
