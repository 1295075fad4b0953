"""Small helpers that know nothing of training: atomic files, hashes and error texts."""
