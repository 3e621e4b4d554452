"""Names: the mapping from image references to root descriptors, with one small file per name.

Writers of different names do not wait for each other. Names are the entry points for people, other tools and gc. A run records
a name only after all content of the image is in the store.
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
    """A recorded image: its name, root descriptor, source repository and time of recording.

    `platforms` are the wanted platforms of an index; the manifests of other platforms may be missing. None means every
    platform.
    With `lacks_attestations`, attestation manifests may be missing even for the wanted platforms, as after an import.
    `referrers` are manifests with the root, a manifest below the root, or another referrer as subject.
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
        """The roots of the content of this name."""
        return (self.descriptor, *(referrer.descriptor for referrer in self.referrers))

    @property
    def repository(self) -> str:
        """The repository that has the tags of the referrers."""
        try:
            return Reference.parse(self.name).locator
        except InvalidInput:
            return self.source

    def to_json(self) -> bytes:
        """Return the stored form of the record."""
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
        """Return the name in the stored record `raw`.

        Raises:
            InvalidInput, Unsupported: the record is damaged.
        """
        return cls.from_document(fields.parse_object(raw, at="record"))

    @classmethod
    def from_document(cls, document: fields.Json) -> Self:
        """Return the name in a parsed record.

        Raises:
            InvalidInput, Unsupported: the record is damaged.
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
        self._read: dict[str, tuple[str, Name]] = {}  # by path: the version of the record, and the name in it

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
        """Record that `name` refers to `descriptor`, fetched from `source`. An older record of the name is replaced.

        A record with the same content keeps its time and is not written, so that `index.json` is not written again.

        Raises:
            InvalidInput: an empty name.
            StoreFull, Denied, Unavailable: the disk.
        """
        if not name:
            raise InvalidInput("name: expected a name, got an empty string")
        record = Name(
            name=name,
            descriptor=descriptor,
            source=source,
            platforms=platforms,
            lacks_attestations=lacks_attestations,
            referrers=referrers,
            recorded=datetime.now(UTC),
        )
        known = self._get_if_sound(name)
        if known is not None and replace(known, recorded=record.recorded) == record:
            return known
        with self._backend.translate_errors(f"name {name}"):
            self._backend.put(self._layout.name(name), record.to_json())
        return record

    def get(self, name: str) -> Name:
        """Return the record of a name.

        Raises:
            NotFound: the name does not exist.
            InvalidInput: the record is damaged; the message has the remedy.
        """
        path = self._layout.name(name)
        with self._backend.translate_errors(f"name {name}"):
            raw = self._backend.fs.cat_file(path)
        return self._parse_record(raw, path, name)

    def __contains__(self, name: str) -> bool:
        """Return True if a name is recorded, even if its record is damaged."""
        with self._backend.translate_errors(f"name {name}"):
            return is_there(self._backend.fs, self._layout.name(name))

    def delete(self, name: str) -> None:
        """Remove a name, even if its record is damaged. The content stays.

        Raises:
            NotFound: the name does not exist.
        """
        if name not in self:
            raise NotFound(f"name {name}: not found")
        with self._backend.translate_errors(f"name {name}"):
            self._backend.fs.rm_file(self._layout.name(name))

    def __iter__(self) -> Iterator[Name]:
        """Return an iterator over the names, sorted. Names that are deleted meanwhile are left out.

        Raises:
            InvalidInput: a record is damaged; the message has the remedy. For gc, a damaged record is a root with unknown
                content.
        """
        known, damaged = self.read()
        if damaged:
            raise damaged[0]
        return iter(known)

    def read(self) -> tuple[list[Name], list[InvalidInput]]:
        """Return the names, sorted, and an error with its remedy for each damaged record."""
        with self._backend.translate_errors("names"):
            listed, read = self.list_records(), self._read
            self._read = {path: read[path] for path, version in listed.items() if path in read and read[path][0] == version}
            changed = [(path, version) for path, version in listed.items() if path not in self._read]
            found = [*(name for _, name in self._read.values()), *self._backend.each(self._read_record, changed)]
        known = [record for record in found if isinstance(record, Name)]
        damaged = [record for record in found if isinstance(record, InvalidInput)]
        return sorted(known, key=lambda record: record.name), sorted(damaged, key=str)

    def load_cache(self) -> None:
        """Load the records stored by the last `save_cache` of any process, so that `read` parses only newer records."""
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
            return  # without a cache, `read` parses every record
        self._read = found | self._read

    def save_cache(self) -> None:
        """Store the parsed records for `load_cache`, each with its version."""
        known = {
            path.rpartition("/")[2]: {"version": version, "record": orjson.Fragment(name.to_json())}
            for path, (version, name) in sorted(self._read.items())
        }
        self._backend.put(self._layout.index_names, orjson.dumps(known))

    def list_records(self) -> dict[str, str]:
        """Return the version of each record by path. A change of a name changes its version."""
        return {entry["name"]: _version(entry) for entry in self._entries()}

    def _entries(self) -> list[dict[str, Any]]:
        try:
            entries = self._backend.fs.ls(self._layout.names, detail=True)
        except FileNotFoundError:
            return []
        return [entry for entry in entries if entry["name"].endswith(_SUFFIX)]

    def _get_if_sound(self, name: str) -> Name | None:
        try:
            return self.get(name)
        except (NotFound, InvalidInput):
            return None

    def _read_record(self, record: tuple[str, str]) -> Name | InvalidInput | None:
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
            remedy = "remove this file" if name is None else f"remove the name with dist rm {shlex.quote(name)}"
            raise InvalidInput(f"damaged record {self._layout.format_path(path)} ({exc}); {remedy}", subject=called) from exc


def _version(entry: dict[str, Any]) -> str:
    """Return a text that changes when a file is replaced: the ETag or time on an object store; inode, time and size on a disk.

    A disk may reuse the inode of a replaced file, but not with the same modification time.
    """
    if "ino" in entry:
        return f"{entry['ino']} {entry['mtime']!r} {entry['size']}"
    return str(entry.get("ETag") or entry.get("etag") or modification_time(entry))
