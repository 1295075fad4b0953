"""Image-text rows: reading, checking and decoding pictures."""
