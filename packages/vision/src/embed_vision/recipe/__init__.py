"""The recipe `vision`: its keys, defaults and what they compile to."""
