"""Facts about a file from fsspec's `info` and `ls`. An error of the file system is raised, never treated as a missing file."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prefect_dist.ocispec.errors import Unsupported


def is_there(fs: Any, path: str) -> bool:
    """Return True if the path exists. Unlike fsspec's `exists`, raise OSError if the file system fails."""
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def modification_time(entry: Mapping[str, Any]) -> datetime:
    """Return the modification time of a file, whose key differs between file systems.

    Raises:
        Unsupported: the file system reports no time under a known key.
    """
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        if (moment := entry.get(key)) is not None:
            return _moment(moment)
    raise Unsupported(
        f"its file system reports no modification time, only {', '.join(sorted(entry))}", subject=entry.get("name")
    )


def _moment(value: Any) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        return datetime.fromtimestamp(value, UTC)
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
