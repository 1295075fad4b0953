"""embed-core: hook specs, registry, config and the one DeepSpeed loop that trains every embedding model."""

__version__ = "0.1.0"
