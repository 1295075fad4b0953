"""What is known of all rows at once, on disk where they are many: offsets, hashes, columns."""
