"""Writes model directories, with a model card, that transformers and sentence-transformers load."""
