"""Times in records that we keep: RFC 3339, as orjson writes them."""

from datetime import datetime

from prefect_dist.ocispec import fields
from prefect_dist.ocispec.errors import InvalidInput


def require(document: fields.Json, key: str, *, at: str) -> datetime:
    """The time under `key`, which has to be there."""
    return _parsed(fields.require(document, key, str, at=at), at=f"{at}.{key}")


def optional(document: fields.Json, key: str, *, at: str) -> datetime | None:
    """The time under `key`, or None where it is absent or null."""
    text = fields.optional(document, key, str, at=at)
    return None if text is None else _parsed(text, at=f"{at}.{key}")


def _parsed(text: str, *, at: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidInput(f"{at}: {exc}") from exc
