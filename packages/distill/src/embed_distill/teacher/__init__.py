"""Teachers: their configs, fingerprints, cached vectors, and training a small one."""
