"""The model kind ``transformers-encoder``: any transformers encoder with one pooled dense vector."""
