"""Teacher vectors on disk: computed once, read by every rank, phase and run after that."""
