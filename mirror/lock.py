"""The lock file: the digest that a mirror published at each target. It cannot be derived from other data.

It tells people and other tools what is mirrored, a check what to look for, and a later run which tags are the mirror's own:
only those may ever be pruned. So it is written before a run changes anything, and again when it is known what came of it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

import orjson

from prefect_dist.ocispec import Digest, Platform, Reference, fields
from prefect_dist.ocispec.errors import Denied, InvalidInput, Unsupported
from prefect_dist.storage.statefile import StateFile

_VERSION = 1
_REMEDY = "; let the user of the run write the file and its directory, or set lock to another file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One target: the digest that it has, since when, and the source of that.

    `mirrored` is None if a run was about to publish the digest and has not recorded yet that it did. In such a record
    `replaces` is the digest that the mirror published there before: a killed run may not have set the tag. `own` is true if no
    tag was there before the mirror made it. `platforms` are those that were wanted of an index, None is all. With `rewritten`
    an index of these was made; a `single` platform replaced the index by its image. `referrers` were mirrored with the image,
    each with its tag, or None if the registry lists it. `unwanted` is when a run first found that no entry wants the tag.
    `related` are the options by which referrers and digest tags were compared last, None if that was not recorded.
    """

    source: str
    digest: Digest
    mirrored: datetime | None
    own: bool
    platforms: tuple[Platform, ...] | None = None
    rewritten: bool = False
    single: Platform | None = None
    referrers: Mapping[Digest, str | None] = field(default_factory=dict)
    unwanted: datetime | None = None
    replaces: Digest | None = None
    related: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored."""
        return {
            "source": self.source,
            "digest": str(self.digest),
            "mirrored": self.mirrored,
            "own": self.own,
            "platforms": None if self.platforms is None else list(map(str, self.platforms)),
            "rewriteIndex": self.rewritten,
            "platform": None if self.single is None else str(self.single),
            "referrers": {str(digest): tag for digest, tag in self.referrers.items()},
            "unwanted": self.unwanted,
            **({} if self.replaces is None else {"replaces": str(self.replaces)}),
            **({} if self.related is None else {"related": self.related}),
        }

    @classmethod
    def from_json(cls, document: fields.Json, *, at: str) -> Self:
        """Return the record in a parsed document.

        Raises:
            InvalidInput, Unsupported: it is damaged.
        """
        return cls(
            source=fields.require(document, "source", str, at=at),
            digest=Digest.parse(fields.require(document, "digest", str, at=at)),
            mirrored=fields.optional_time(document, "mirrored", at=at),
            own=document.get("own") is True,
            platforms=_platforms(document, at=at),
            rewritten=document.get("rewriteIndex") is True,
            single=_platform(document, at=at),
            referrers=_referrers(document, at=at),
            unwanted=fields.optional_time(document, "unwanted", at=at),
            replaces=_digest(document, "replaces", at=at),
            related=None if document.get("related") is None else fields.strings(document, "related", at=at),
        )


Records = Mapping[Reference, Locked]


class Lock:
    """The lock file of a mirror; several runs may have it at once. Without a `url` nothing is remembered."""

    def __init__(self, url: str | None) -> None:
        self._file = StateFile(url) if url is not None else None

    def read(self) -> dict[Reference, Locked]:
        """Return the records by target; none if there is no file.

        Raises:
            InvalidInput: the file is damaged.
            DistError: it cannot be read.
        """
        if self._file is None:
            return {}
        with _name_lock_file():
            raw = self._file.read()
        return self._parse(raw, self._file.url)

    def update(self, amended: Callable[[Records], Records]) -> None:
        """Replace the records by the result of `amended` for them.

        Raises:
            InvalidInput: the file is damaged.
            DistError: it cannot be written.
        """
        if self._file is not None:
            at = self._file.url
            with _name_lock_file():
                self._file.change(lambda raw: _document(amended(self._parse(raw, at))))

    def _parse(self, raw: bytes | None, at: str) -> dict[Reference, Locked]:
        if raw is None:
            return {}
        try:
            return _records(raw, at=at)
        except (InvalidInput, Unsupported) as exc:
            raise InvalidInput(f"lock file {at}: damaged ({exc}); mend it, or remove it to begin a new one") from exc


@contextmanager
def _name_lock_file() -> Iterator[None]:
    """Add to a permission error of this block that it is about the lock file, and the remedy."""
    try:
        yield
    except Denied as exc:
        has_remedy = ";" in str(exc)  # such as the credentials of an object store
        raise Denied(f"lock file {exc}{'' if has_remedy else _REMEDY}") from exc


def _records(raw: bytes, *, at: str) -> dict[Reference, Locked]:
    document = fields.parse_object(raw, at=at)
    if document.get("version") != _VERSION:
        raise InvalidInput(f"{at}.version: expected {_VERSION}, got {document.get('version')!r}")
    images = fields.require(document, "images", dict, at=at)
    return {Reference.parse(name): Locked.from_json(_object(one, at=name), at=name) for name, one in images.items()}


def _document(records: Records) -> bytes:
    images = {str(target): record.to_json() for target, record in sorted(records.items(), key=lambda item: str(item[0]))}
    return orjson.dumps({"version": _VERSION, "images": images}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _digest(document: fields.Json, key: str, *, at: str) -> Digest | None:
    text = fields.optional(document, key, str, at=at)
    return None if text is None else Digest.parse(text)


def _platforms(document: fields.Json, *, at: str) -> tuple[Platform, ...] | None:
    if document.get("platforms") is None:
        return None
    return tuple(map(Platform.parse, fields.strings(document, "platforms", at=at)))


def _platform(document: fields.Json, *, at: str) -> Platform | None:
    text = fields.optional(document, "platform", str, at=at)
    return None if text is None else Platform.parse(text)


def _referrers(document: fields.Json, *, at: str) -> dict[Digest, str | None]:
    found = fields.optional(document, "referrers", dict, at=at) or {}
    return {Digest.parse(digest): fields.optional(found, digest, str, at=f"{at}.referrers") for digest in found}


def _object(value: object, *, at: str) -> fields.Json:
    if not isinstance(value, dict):
        raise InvalidInput(f"{at}: expected an object")
    return value
