"""Measuring a model: exact retrieval over a corpus, on all ranks."""
