"""The documents and rows that mining reads."""
