"""Losses that learn from a teacher's vectors or scores, a regulariser, and their weighted sum: one per file."""
