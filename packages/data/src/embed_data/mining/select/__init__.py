"""Choosing hard negatives from ranked documents, and auditing those there are."""
