"""Reading training rows of any common format into one memory-mapped table per file."""
