"""Measures a model by exact retrieval over a corpus, on all ranks."""
