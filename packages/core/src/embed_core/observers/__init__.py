"""Observers of a run: metrics.jsonl, trackers and progress lines."""
