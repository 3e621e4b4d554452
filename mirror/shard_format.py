"""The format of the files of a divided run: signatures, errors, and checks of the version and of damaged files.

The parent passes a key to each shard, and the shard signs its result. So a program that can only write to the content store
cannot invent results. The first line of a result is the signature, and the JSON follows.
"""

import hmac
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import orjson

from prefect_dist.ocispec import fields
from prefect_dist.ocispec.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    Corrupt,
    Denied,
    DistError,
    InvalidInput,
    NotFound,
    Unavailable,
    Unsupported,
)
from prefect_dist.remotes import Quota
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.stats import TransferStats

VERSION = 1
_CLASSES: Mapping[str, type[DistError]] = {
    one.__name__: one
    for one in (InvalidInput, NotFound, AlreadyExists, Busy, Unavailable, Corrupt, Denied, Conflict, Unsupported, Stopped)
}


def sign(raw: bytes, key: str) -> bytes:
    """Return the content of a result with its signature."""
    return _make_signature(raw, key) + b"\n" + raw


def verify(signed: bytes, key: str, *, at: str) -> bytes:
    """Return the content of a result without its signature.

    Raises:
        Corrupt: the signature is wrong.
    """
    signature, _, raw = signed.partition(b"\n")
    if not hmac.compare_digest(signature, _make_signature(raw, key)):
        raise Corrupt("the result has no signature of the shard; another program has changed the file; run again", subject=at)
    return raw


def _make_signature(raw: bytes, key: str) -> bytes:
    return hmac.new(key.encode(), raw, "sha256").hexdigest().encode()


def dump(document: Mapping[str, Any]) -> bytes:
    """Return the content of a file, with the version of the format."""
    return orjson.dumps({"version": VERSION, **document}, option=orjson.OPT_SORT_KEYS)


def parse(raw: bytes, *, at: str) -> fields.Json:
    """Return the document in a file.

    Raises:
        InvalidInput: the file is no document of this version.
    """
    document = fields.parse_object(raw, at=at)
    if (version := fields.require(document, "version", int, at=at)) != VERSION:
        raise InvalidInput(
            f"expected version {VERSION}, got {version}; use the same version of dist on all workers", subject=at
        )
    return document


def read_kind(raw: bytes, *, at: str) -> str:
    """Return the kind of the work of a shard by the content of the input.

    Raises:
        InvalidInput: the file is damaged.
    """
    return fields.require(parse(raw, at=at), "kind", str, at=at)


def read_stopped(raw: bytes) -> bool:
    """Return True if a result is from a shard that was stopped before its end. A damaged result is from no stopped shard."""
    try:
        return fields.require(parse(raw, at=""), "stopped", bool, at="")
    except DistError:
        return False


@contextmanager
def refuse_damage(at: str) -> Iterator[None]:
    """Raise InvalidInput for values of a wrong type or without a required key."""
    try:
        yield
    except DistError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise InvalidInput(f"the file of the run is damaged ({type(exc).__name__}: {exc})", subject=at) from exc


def error_json(error: DistError) -> dict[str, str | None]:
    """Return the base class, the message, the subject and the cause of an error, without the details of a response."""
    known = next((name for name, one in _CLASSES.items() if isinstance(error, one)), "")
    return {"class": known, "message": error.message, "subject": error.subject, "cause": error.cause}


def parse_errors(document: fields.Json, key: str, *, at: str) -> tuple[DistError, ...]:
    """Return the errors in a list.

    Raises:
        InvalidInput: the list is damaged.
    """
    return tuple(_parse_error(one, at=where) for where, one in fields.objects(document, key, at=at))


def _parse_error(document: fields.Json, *, at: str) -> DistError:
    made = _CLASSES.get(fields.require(document, "class", str, at=at), DistError)
    subject, cause = (fields.optional(document, key, str, at=at) for key in ("subject", "cause"))
    return made(fields.require(document, "message", str, at=at), subject=subject, cause=cause)


def work_json(stats: TransferStats, tasks: int, quotas: Mapping[str, Quota]) -> dict[str, Any]:
    """Return the counts of transfers, the number of units of work, and the reported quotas by host."""
    return {"stats": asdict(stats), "tasks": tasks, "quotas": {host: asdict(quota) for host, quota in quotas.items()}}


def parse_stats(document: fields.Json, *, at: str) -> TransferStats:
    """Return the counts of transfers under the key `stats`.

    Raises:
        InvalidInput: the counts are damaged.
    """
    stats = fields.require(document, "stats", dict, at=at)
    return TransferStats(**{name: fields.require(stats, name, int, at=f"{at}.stats") for name in stats})


def parse_quotas(document: fields.Json, *, at: str) -> dict[str, Quota]:
    """Return the reported quotas under the key `quotas`, by host.

    Raises:
        InvalidInput: a quota is damaged.
    """
    quotas = fields.require(document, "quotas", dict, at=at)
    return {host: _parse_quota(fields.require(quotas, host, dict, at=f"{at}.quotas"), at=f"{at}.quotas") for host in quotas}


def _parse_quota(document: fields.Json, *, at: str) -> Quota:
    return Quota(
        limit=fields.require(document, "limit", int, at=at),
        remaining=fields.require(document, "remaining", int, at=at),
        window_s=fields.optional(document, "window_s", int, at=at),
    )
