"""Losses of image-text training: one per file."""
