"""Teachers: configs, fingerprints, cached vectors, precomputation, and the training of a small teacher."""
