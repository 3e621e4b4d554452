"""Errors of the command line itself."""

from ocispec.errors import InvalidInput


class BadInput(InvalidInput):
    """An argument that cannot be right, whatever the rest of the world says."""
