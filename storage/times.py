"""Times in the records of names and ingests: RFC 3339, as orjson writes them."""

from datetime import datetime

from ocispec import fields
from ocispec.errors import InvalidInput


def require(document: fields.Json, key: str, *, at: str) -> datetime:
    """The time under `key`, which has to be there."""
    text = fields.require(document, key, str, at=at)
    try:
        return datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidInput(f"{at}.{key}: {exc}") from exc
