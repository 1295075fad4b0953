"""Teacher-to-student distillation with a teacher store for embed."""

__version__ = "0.1.0"
