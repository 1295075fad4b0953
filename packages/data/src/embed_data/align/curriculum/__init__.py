"""Negatives in stages of rising difficulty."""
