"""Rankers: BM25, dense models and cross-encoders."""
