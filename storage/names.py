"""Names: which descriptor a reference stands for. One small object per name, so that writers never wait for each other.

Names are what people and other tools start from; a name is only recorded for content that is whole.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import orjson

from prefect_dist.ocispec import Descriptor, Platform, Reference, fields
from prefect_dist.ocispec.errors import InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage.backend import Backend
from prefect_dist.storage.file_info import is_there, modification_time
from prefect_dist.storage.layout import Layout

_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Name:
    """A name, its root descriptor, the repository that it came from, and the time of its recording.

    `platforms` are the platforms wanted of an index, whose other manifests may be missing; None is all.
    With `lacks_attestations`, attestation manifests of these platforms may be missing, too: an archive has none.
    `referrers` are manifests that refer to the root, to manifests below it, or to one another.
    """

    name: str
    descriptor: Descriptor
    source: str
    platforms: tuple[Platform, ...] | None
    lacks_attestations: bool = False
    referrers: tuple[Referrer, ...] = ()
    recorded: datetime

    @property
    def roots(self) -> tuple[Descriptor, ...]:
        """The roots of all content that the name needs."""
        return (self.descriptor, *(referrer.descriptor for referrer in self.referrers))

    @property
    def repository(self) -> str:
        """The repository in which the tags of its referrers are."""
        try:
            return Reference.parse(self.name).locator
        except InvalidInput:
            return self.source

    def to_json(self) -> bytes:
        """The record as it is kept."""
        return orjson.dumps(
            {
                "name": self.name,
                "descriptor": self.descriptor.to_json(),
                "source": self.source,
                "platforms": None if self.platforms is None else list(map(str, self.platforms)),
                "lacks_attestations": self.lacks_attestations,
                "referrers": [referrer.to_json() for referrer in self.referrers],
                "recorded": self.recorded,
            },
            option=orjson.OPT_INDENT_2,
        )

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Return the name whose record is `raw`.

        Raises:
            InvalidInput, Unsupported: it is damaged.
        """
        return cls.from_document(fields.parse_object(raw, at="record"))

    @classmethod
    def from_document(cls, document: fields.Json) -> Self:
        """Return the name whose record was parsed to `document`.

        Raises:
            InvalidInput, Unsupported: it is damaged.
        """
        at = "record"
        descriptor = fields.require(document, "descriptor", dict, at=at)
        platforms = fields.strings(document, "platforms", at=at)
        referrers = fields.objects(document, "referrers", at=at)
        return cls(
            name=fields.require(document, "name", str, at=at),
            descriptor=Descriptor.from_json(descriptor, at=f"{at}.descriptor"),
            source=fields.require(document, "source", str, at=at),
            platforms=tuple(map(Platform.parse, platforms)) or None,
            lacks_attestations=document.get("lacks_attestations") is True,
            referrers=tuple(Referrer.from_json(item, at=path) for path, item in referrers),
            recorded=fields.require_time(document, "recorded", at=at),
        )


class Names:
    """The names of a store. Thread-safe."""

    def __init__(self, backend: Backend, layout: Layout) -> None:
        self._backend, self._layout = backend, layout
        self._read: dict[str, tuple[str, Name]] = {}  # by path: the version that was read, and what it says

    def put(
        self,
        name: str,
        descriptor: Descriptor,
        *,
        source: str,
        platforms: tuple[Platform, ...] | None = None,
        lacks_attestations: bool = False,
        referrers: tuple[Referrer, ...] = (),
    ) -> Name:
        """Record that `name` stands for `descriptor`, which came from `source`; an older record is replaced.

        One that says the same stays as it is, with its time: so `index.json` is not written anew for it.

        Raises:
            InvalidInput: an empty name.
            StoreFull, Denied, Unavailable: the disk.
        """
        if not name:
            raise InvalidInput("name: it is empty")
        record = Name(
            name=name,
            descriptor=descriptor,
            source=source,
            platforms=platforms,
            lacks_attestations=lacks_attestations,
            referrers=referrers,
            recorded=datetime.now(UTC),
        )
        known = self._known(name)
        if known is not None and replace(known, recorded=record.recorded) == record:
            return known
        with self._backend.translate_errors(f"name {name}"):
            self._backend.put(self._layout.name(name), record.to_json())
        return record

    def get(self, name: str) -> Name:
        """The record of a name.

        Raises:
            NotFound: no such name.
            InvalidInput: its record is damaged; the message says what to do.
        """
        path = self._layout.name(name)
        with self._backend.translate_errors(f"name {name}"):
            raw = self._backend.fs.cat_file(path)
        return self._parse_record(raw, path, name)

    def __contains__(self, name: str) -> bool:
        """Return True if a name is recorded, even with a damaged record."""
        with self._backend.translate_errors(f"name {name}"):
            return is_there(self._backend.fs, self._layout.name(name))

    def delete(self, name: str) -> None:
        """Forget a name, be its record damaged; its content stays.

        Raises:
            NotFound: no such name.
        """
        if name not in self:
            raise NotFound(f"name {name}: not found")
        with self._backend.translate_errors(f"name {name}"):
            self._backend.fs.rm_file(self._layout.name(name))

    def __iter__(self) -> Iterator[Name]:
        """All names, sorted. One that is deleted while they are read is left out.

        Raises:
            InvalidInput: a record is damaged; the message says what to do. For gc it is a root that nobody knows.
        """
        known, damaged = self.read()
        if damaged:
            raise damaged[0]
        return iter(known)

    def read(self) -> tuple[list[Name], list[InvalidInput]]:
        """All names, sorted, and for each whose record is damaged the error that says what to do."""
        with self._backend.translate_errors("names"):
            listed, read = self.list_records(), self._read
            self._read = {path: read[path] for path, version in listed.items() if path in read and read[path][0] == version}
            changed = [(path, version) for path, version in listed.items() if path not in self._read]
            found = [*(name for _, name in self._read.values()), *self._backend.each(self._found, changed)]
        known = [record for record in found if isinstance(record, Name)]
        damaged = [record for record in found if isinstance(record, InvalidInput)]
        return sorted(known, key=lambda record: record.name), sorted(damaged, key=str)

    def load_cache(self) -> None:
        """Have `read` know what the last process that called `save_cache` had read: then it reads only newer records."""
        try:
            document = fields.parse_object(self._backend.fs.cat_file(self._layout.index_names), at="names")
            found = {
                f"{self._layout.names}/{file}": (
                    fields.require(one, "version", str, at=file),
                    Name.from_document(fields.require(one, "record", dict, at=file)),
                )
                for file, one in document.items()
                if isinstance(one, dict)
            }
        except (FileNotFoundError, InvalidInput, Unsupported):
            return  # every record is read
        self._read = found | self._read

    def save_cache(self) -> None:
        """Keep what was read for `load_cache`, with the version of each record."""
        known = {
            path.rpartition("/")[2]: {"version": version, "record": orjson.Fragment(name.to_json())}
            for path, (version, name) in sorted(self._read.items())
        }
        self._backend.put(self._layout.index_names, orjson.dumps(known))

    def list_records(self) -> dict[str, str]:
        """Return the path and the version of each record. They change with every change of a name."""
        return {entry["name"]: _version(entry) for entry in self._entries()}

    def _entries(self) -> list[dict[str, Any]]:
        try:
            entries = self._backend.fs.ls(self._layout.names, detail=True)
        except FileNotFoundError:
            return []
        return [entry for entry in entries if entry["name"].endswith(_SUFFIX)]

    def _known(self, name: str) -> Name | None:
        try:
            return self.get(name)
        except (NotFound, InvalidInput):
            return None

    def _found(self, record: tuple[str, str]) -> Name | InvalidInput | None:
        path, version = record
        try:
            name = self._parse_record(self._backend.fs.cat_file(path), path, self._layout.parse_name(path))
        except FileNotFoundError:
            return None
        except InvalidInput as exc:
            return exc
        self._read[path] = version, name
        return name

    def _parse_record(self, raw: bytes, path: str, name: str | None) -> Name:
        try:
            return Name.from_json(raw)
        except (InvalidInput, Unsupported) as exc:
            called = "a name" if name is None else f"name {name}"
            remedy = "remove this file" if name is None else f"forget it with dist rm {shlex.quote(name)}"
            raise InvalidInput(f"{called}: damaged in {self._layout.format_path(path)} ({exc}); {remedy}") from exc


def _version(entry: dict[str, Any]) -> str:
    """Return what changes when a file is replaced, as fsspec shows it: on an object store its tag or time.

    On a disk that is inode, time and size: the inode of a file that was replaced is soon another's, but not at the same time.
    """
    if "ino" in entry:
        return f"{entry['ino']} {entry['mtime']!r} {entry['size']}"
    return str(entry.get("ETag") or entry.get("etag") or modification_time(entry))
