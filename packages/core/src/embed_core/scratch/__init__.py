"""What the word ``from-scratch`` means in every plugin: a small random model, its tokenizer trained on the run's data."""

FROM_SCRATCH = "from-scratch"
"""The value of a model's ``name_or_path`` that asks for it."""
