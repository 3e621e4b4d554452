"""What is known of a file without reading it, asked so that a file system that fails is not taken for an empty one."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prefect_dist.ocispec.errors import Unsupported


def is_there(fs: Any, path: str) -> bool:
    """Whether something has this path. Unlike fsspec's `exists`, a failure is an OSError, not a no."""
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def modified(entry: Mapping[str, Any]) -> datetime:
    """When a file was last written to, from what fsspec's `info` and `ls` say of it, each file system in its own words.

    Raises:
        Unsupported: a file system that says it in none of the words that are known here.
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
