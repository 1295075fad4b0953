"""The embedded corpus: docstrings of installed Python packages as queries and passages."""
