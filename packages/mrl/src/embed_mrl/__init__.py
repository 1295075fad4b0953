"""Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147) over any loss."""

__version__ = "0.1.0"
