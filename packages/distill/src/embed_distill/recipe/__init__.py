"""The recipe `distill`: its sections and what they compile to."""
