"""Whether something is there, asked so that a file system that fails is not taken for an empty one."""

from typing import Any


def is_there(fs: Any, path: str) -> bool:
    """Whether something has this path. Unlike fsspec's `exists`, a failure is an OSError, not a no."""
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True
