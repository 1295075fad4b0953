"""Small helpers that know nothing of training: atomic files and hashes."""
