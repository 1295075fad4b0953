"""CLIP-style, composed and vision-language embedding models for embed."""

__version__ = "0.1.0"
