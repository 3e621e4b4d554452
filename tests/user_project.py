"""A project of a user, with packages that have the same names as the layers of this package."""

from pathlib import Path

from tests.source import LAYERS


def make_project(directory: Path) -> Path:
    """Create the packages and return `directory`. Each package fails when it is imported."""
    for name in LAYERS:
        (directory / name).mkdir(parents=True)
        (directory / name / "__init__.py").write_text('raise RuntimeError("the package of the user was imported")\n')
    return directory
