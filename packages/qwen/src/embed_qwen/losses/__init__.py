"""ms-swift's losses behind the core's interface, and the paper's own InfoNCE."""
