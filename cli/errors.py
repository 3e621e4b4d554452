"""How a command can end before its work does."""

from ocispec.errors import InvalidInput


class BadInput(InvalidInput):
    """An argument that cannot be right, whatever the rest of the world says."""


class TimedOut(BaseException):
    """The time for the whole command is over. Like an interrupt, no library on the way may take it for an error of its own."""
