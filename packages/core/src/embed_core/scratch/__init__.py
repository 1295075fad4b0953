"""What the word ``from-scratch`` means in every plugin: a small model, random, with a tokenizer of the run's own data."""

FROM_SCRATCH = "from-scratch"
"""The value of a model's ``name_or_path`` that asks for it."""
