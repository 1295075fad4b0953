"""Datasets whose rows carry a teacher's vectors, and datasets of single texts."""
