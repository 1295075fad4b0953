"""What the word ``from-scratch`` means in every plugin: a small random model, its tokenizer from the run's texts."""

FROM_SCRATCH = "from-scratch"
"""The value of a model's ``name_or_path`` that asks for it."""
