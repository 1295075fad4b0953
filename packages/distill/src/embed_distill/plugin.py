"""What ``embed-distill`` registers."""

from __future__ import annotations

EMBED_REQUIRES = ("data",)
"""Plugins that are activated with this one: the recipe's dataset kinds are embed-data's."""
