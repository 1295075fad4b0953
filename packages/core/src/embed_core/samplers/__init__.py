"""How rows become global batches: `shuffled`, `no-duplicates`, `by-source`."""
