"""Typed configuration: components, the run, and loading with places for every error."""
