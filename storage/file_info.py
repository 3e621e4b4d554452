"""Facts of a file from fsspec's `info` and `ls`. A failing file system is an error, not an empty one."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prefect_dist.ocispec.errors import Unsupported


def is_there(fs: Any, path: str) -> bool:
    """Return True if the path exists. Unlike fsspec's `exists`, a failure raises OSError."""
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def modification_time(entry: Mapping[str, Any]) -> datetime:
    """Return the modification time of a file. File systems report it under different keys.

    Raises:
        Unsupported: the file system reports it under no known key.
    """
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        if (moment := entry.get(key)) is not None:
            return _moment(moment)
    raise Unsupported(f"{entry.get('name')}: its file system tells no time, only {', '.join(sorted(entry))}")


def _moment(value: Any) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        return datetime.fromtimestamp(value, UTC)
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
