"""Evaluation of image-text models."""
