"""Rows and reports that alignment writes."""
