"""BGE-M3 unified fine-tuning (Chen et al. 2024, arXiv 2402.03216)."""

__version__ = "0.1.0"
