"""What the word ``from-scratch`` means in every plugin: a small random model, its tokenizer from the run's texts."""

from embed_core.config.component import FROM_SCRATCH

__all__ = ["FROM_SCRATCH"]
