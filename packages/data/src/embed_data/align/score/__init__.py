"""Scoring chunks by a language model's log-probabilities, local or on a server."""
