"""Documents, questions and chunks that alignment reads."""
