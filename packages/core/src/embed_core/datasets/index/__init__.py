"""Indexes over all rows, on disk where they are many: offsets, hashes, columns."""
