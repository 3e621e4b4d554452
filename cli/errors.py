"""Errors of the command line itself, and how a person is told of any."""

import sys

from prefect_dist.ocispec.errors import Mistakes


class BadInput(Mistakes):
    """An argument that cannot be right, whatever the rest of the world says. What is wrong with it has a line each."""


def tell(message: object, *objects: str) -> None:
    """Write a message to standard error as one line, and below it one indented line for each object."""
    sys.stderr.write(f"dist: {' '.join(str(message).split())}\n")
    sys.stderr.writelines(f"    {name}\n" for name in objects)
