"""Locations of stores and configurations that are no path or URL."""

BLOCK = "block:"
"""The start of a location in a Prefect block, such as `block:NAME` for a store or a configuration."""
