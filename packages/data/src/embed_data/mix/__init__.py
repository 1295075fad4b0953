"""Several sources as one dataset: how many rows of each, and how they meet in a batch."""
