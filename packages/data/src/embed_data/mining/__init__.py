"""Hard negatives for a dataset, from a corpus: ``embed mine``."""
