"""The output of mining: rows, progress and the report."""
