"""Models of the core: encoders, LoRA, models from scratch; finding, reading and wrapping models."""
