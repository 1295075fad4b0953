"""Student and teacher evaluated against each other."""
