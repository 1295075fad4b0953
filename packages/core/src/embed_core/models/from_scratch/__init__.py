"""``from-scratch`` in every plugin: a small random model, with a tokenizer trained on the run's texts."""

from embed_core.config.component import FROM_SCRATCH

__all__ = ["FROM_SCRATCH"]
