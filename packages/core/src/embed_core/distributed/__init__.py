"""The process group of a run, its collectives, and seeds derived from numbers."""
