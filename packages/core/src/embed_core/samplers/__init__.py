"""Samplers, which draw the rows of global batches: `shuffled`, `no-duplicates`, `by-source`."""
