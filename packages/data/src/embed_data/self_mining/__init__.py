"""Hard negatives mined between stages with the model that is being trained."""
