"""Asymmetric evaluation: retrieval in which student and teacher each encode queries or documents."""
