"""What mining writes: rows, progress and the report."""
