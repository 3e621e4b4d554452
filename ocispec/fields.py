"""Typed access to parsed JSON. Each error contains the path of the bad key."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

import orjson

from prefect_dist.ocispec.errors import InvalidInput, quote_text

T = TypeVar("T")
Json = Mapping[str, Any]

_NAMES = {str: "a string", int: "an integer", bool: "true or false", dict: "an object", list: "a list"}


def parse_object(raw: bytes, *, at: str) -> Json:
    """Return the JSON object in `raw`.

    Raises:
        InvalidInput: not JSON, or not an object; the message starts with `at` and quotes the first bytes.
    """
    document = _parse(raw, at=at)
    if not isinstance(document, dict):
        raise InvalidInput(f"{at}: expected a JSON object, got {_describe_value(document)}")
    return document


def parse_objects(raw: bytes, *, at: str) -> Iterator[tuple[str, Json]]:
    """Return an iterator over the objects in the JSON list `raw`, each with its path.

    Raises:
        InvalidInput: not JSON, or not a list of objects.
    """
    document = _parse(raw, at=at)
    if not isinstance(document, list):
        raise InvalidInput(f"{at}: expected a JSON list, got {_describe_value(document)}")
    return _objects(document, at=at)


def require(document: Json, key: str, kind: type[T], *, at: str) -> T:
    """Return the value of `key`, which is required and has the type `kind`."""
    value = optional(document, key, kind, at=at)
    if value is None:
        raise InvalidInput(f"{at}.{key}: missing, expected {_NAMES[kind]}")
    return value


def optional(document: Json, key: str, kind: type[T], *, at: str) -> T | None:
    """Return the value of `key`; None if the key is absent or null."""
    value = document.get(key)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):  # a bool is an int in Python
        raise InvalidInput(f"{at}.{key}: expected {_NAMES[kind]}, got {_describe_value(value)}")
    return value


def require_time(document: Json, key: str, *, at: str) -> datetime:
    """Return the time (RFC 3339) of `key`, which is required."""
    return _parse_time(require(document, key, str, at=at), at=f"{at}.{key}")


def optional_time(document: Json, key: str, *, at: str) -> datetime | None:
    """Return the time (RFC 3339) of `key`; None if the key is absent or null."""
    text = optional(document, key, str, at=at)
    return None if text is None else _parse_time(text, at=f"{at}.{key}")


def objects(document: Json, key: str, *, at: str) -> Iterator[tuple[str, Json]]:
    """Return an iterator over the objects in the list `key`, each with its path; an absent list is empty."""
    return _objects(optional(document, key, list, at=at) or [], at=f"{at}.{key}")


def strings(document: Json, key: str, *, at: str) -> tuple[str, ...]:
    """Return the strings in the list `key`; an absent list is empty."""
    items = optional(document, key, list, at=at) or []
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise InvalidInput(f"{at}.{key}[{number}]: expected a string, got {_describe_value(item)}")
    return tuple(items)


def pairs(document: Json, key: str, *, at: str) -> tuple[tuple[str, str], ...]:
    """Return the keys and string values of the object `key`, in document order; an absent object is empty."""
    mapping = optional(document, key, dict, at=at) or {}
    for name, value in mapping.items():
        if not isinstance(value, str):
            raise InvalidInput(f"{at}.{key}[{quote_text(name)}]: expected a string, got {_describe_value(value)}")
    return tuple(mapping.items())


def _parse_time(text: str, *, at: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidInput(f"{at}: {exc}") from exc


def _parse(raw: bytes, *, at: str) -> object:
    try:
        document: object = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"{at}: not JSON ({exc}); it starts with {raw[:40]!r}") from exc
    return document


def _objects(items: list[Any], *, at: str) -> Iterator[tuple[str, Json]]:
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise InvalidInput(f"{at}[{number}]: expected an object, got {_describe_value(item)}")
    # A generator: a document of 4 MiB can list a million objects, and a list of their paths would need several times the
    # memory.
    return ((f"{at}[{number}]", item) for number, item in enumerate(items))


def _describe_value(value: object) -> str:
    if value is None or isinstance(value, bool | float):
        return repr(value)
    return _NAMES[type(value)]  # not the value: a list may be nested too deeply, and a text too long
