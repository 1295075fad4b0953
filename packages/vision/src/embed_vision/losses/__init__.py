"""Losses of image-text training, one in each file."""
