"""Every file format, recognised, and its records made into rows; bad rows by file and line."""
