"""The lock file: the digest that a mirror published at each target. No other data contains these digests.

People and other tools read the mirrored images in the lock file. A check compares the targets with it. A later run prunes only
tags that the lock file lists as created by the mirror. So a run writes the file before its first change, and again at the end.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

import orjson

from prefect_dist.ocispec import Digest, Platform, Reference, fields
from prefect_dist.ocispec.errors import Denied, InvalidInput, Unsupported
from prefect_dist.storage.errors import ServiceDenied
from prefect_dist.storage.statefile import StateFile

_VERSION = 1
_REMEDY = "allow the user of the run to write the file and its directory, or set `lock` to another file"


NO_REFERRERS: Mapping[Digest, str | None] = {}
"""The referrers of most records: one instance, because a lock file has thousands of records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """The record of a target: its digest and source, the time, and the options of the entry.

    Attributes:
        mirrored: the time of publication. None if a run has announced the publication and not confirmed it.
        own: true if the mirror created the tag.
        platforms: the selected platforms of an index; None for every platform.
        rewritten: true if the target got an index of the selected platforms only.
        single: the platform whose image replaced the index.
        referrers: the mirrored referrers, each with its tag, or None if the registry lists the referrer.
        unwanted: the time when a run first found no entry for the tag.
        replaces: the earlier digest at the target, for a record without `mirrored`: a killed run may not have set the tag.
        related: the options of the last comparison of referrers and digest tags; None if no run recorded the options.
    """

    source: str
    digest: Digest
    mirrored: datetime | None
    own: bool
    platforms: tuple[Platform, ...] | None = None
    rewritten: bool = False
    single: Platform | None = None
    referrers: Mapping[Digest, str | None] = field(default_factory=lambda: NO_REFERRERS)
    unwanted: datetime | None = None
    replaces: Digest | None = None
    related: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record for the file."""
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
            InvalidInput, Unsupported: the record is damaged.
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
Pending = Mapping[Reference, datetime]
"""The targets that do not serve a known change, each with the time when a run first found the change."""


class Lock:
    """The lock file of a mirror, which several runs may share. Without a `url` there is no file and no record.

    The file has pending changes under the name of the flow and the configuration (`run`). Other runs have no pending changes.
    """

    def __init__(self, url: str | None, *, run: str | None = None) -> None:
        self._file, self._run = StateFile(url) if url is not None else None, run
        # The last content with the digest of its bytes. A parsed file takes several times its size, so an unchanged file is not
        # parsed again.
        self._last: tuple[Digest, _Content] | None = None

    def read(self) -> Records:
        """Return the records by target. A missing file has no records.

        Raises:
            InvalidInput: the file is damaged.
            DistError: the file cannot be read.
        """
        return self._read().images

    def read_with_pending(self) -> tuple[Records, frozenset[Reference]]:
        """Return the records by target, and the targets of the pending changes of all runs.

        Raises:
            InvalidInput: the file is damaged.
            DistError: the file cannot be read.
        """
        content = self._read()
        return content.images, frozenset().union(*content.pending.values())

    def _read(self) -> "_Content":
        if self._file is None:
            return _Content()
        with _name_lock_file():
            raw = self._file.read()
        return self._parse(raw, self._file.url)

    def update(self, amend: Callable[[Records], Records], settle: Callable[[Pending], Pending] | None = None) -> None:
        """Replace the records by the result of `amend`, and the pending changes of the run by the result of `settle`.

        A concurrent change of the file repeats the calls.

        Raises:
            InvalidInput: the file is damaged.
            DistError: the file cannot be written.
        """
        if self._file is None:
            return
        at = self._file.url

        def change(raw: bytes | None) -> bytes:
            found = self._parse(raw, at)
            del raw  # a large file is not in memory together with the new content
            return self._format(self._amend(found, amend, settle))

        with _name_lock_file():
            self._file.change(change)

    def _amend(
        self, found: "_Content", amend: Callable[[Records], Records], settle: Callable[[Pending], Pending] | None
    ) -> "_Content":
        pending = found.pending
        if settle is not None and self._run is not None:
            own = settle(pending.get(self._run, {}))
            pending = {run: one for run, one in {**pending, self._run: own}.items() if one}
        return _Content(amend(found.images), pending)

    def _parse(self, raw: bytes | None, at: str) -> "_Content":
        if raw is None:
            return _Content()
        digest = Digest.of(raw)
        if self._last is None or self._last[0] != digest:
            try:
                self._last = digest, _parse_content(raw, at=at)
            except (InvalidInput, Unsupported) as exc:
                remedy = "restore the file, or remove it to start a new one"
                raise InvalidInput(f"lock file {at}: damaged ({exc}); {remedy}") from exc
        return self._last[1]

    def _format(self, content: "_Content") -> bytes:
        raw = _document(content)
        self._last = Digest.of(raw), content
        return raw


@contextmanager
def _name_lock_file() -> Iterator[None]:
    """Name the lock file in a permission error, with the remedy. The error of an object store has a remedy."""
    try:
        yield
    except ServiceDenied as exc:
        raise ServiceDenied(exc.message, subject=f"lock file {exc.subject}") from exc
    except Denied as exc:
        raise Denied(f"{exc.message}; {_REMEDY}", subject=f"lock file {exc.subject}") from exc


@dataclass(frozen=True, slots=True)
class _Content:
    """The records of the file by target, and the pending changes of each run."""

    images: Records = field(default_factory=dict)
    pending: Mapping[str, Pending] = field(default_factory=dict)


def _parse_content(raw: bytes, *, at: str) -> _Content:
    document = fields.parse_object(raw, at=at)
    if document.get("version") != _VERSION:
        raise InvalidInput(f"{at}.version: expected {_VERSION}, got {document.get('version')!r}")
    images = fields.require(document, "images", dict, at=at)
    pending = fields.optional(document, "pending", dict, at=at) or {}
    return _Content(
        # Each part of the document is dropped as soon as its record exists: a large file would be in memory twice.
        {Reference.parse(name): Locked.from_json(_object(images.pop(name), at=name), at=name) for name in list(images)},
        {run: _parse_pending(_object(one, at=f"{at}.pending"), at=f"{at}.pending") for run, one in pending.items()},
    )


def _parse_pending(document: fields.Json, *, at: str) -> Pending:
    return {Reference.parse(target): fields.require_time(document, target, at=at) for target in document}


def _document(content: _Content) -> bytes:
    images = {str(target): content.images[target] for target in sorted(content.images, key=str)}
    pending = {run: {str(one): found[one] for one in sorted(found, key=str)} for run, found in sorted(content.pending.items())}
    document = {"version": _VERSION, "images": images, **({"pending": pending} if pending else {})}
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATACLASS
    return orjson.dumps(document, default=Locked.to_json, option=options)


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


def _referrers(document: fields.Json, *, at: str) -> Mapping[Digest, str | None]:
    found = fields.optional(document, "referrers", dict, at=at)
    if not found:
        return NO_REFERRERS
    return {Digest.parse(digest): fields.optional(found, digest, str, at=f"{at}.referrers") for digest in found}


def _object(value: object, *, at: str) -> fields.Json:
    if not isinstance(value, dict):
        raise InvalidInput("expected an object", subject=at)
    return value
