"""Names: which descriptor a reference stands for. One small object per name, so that writers never wait for each other.

Names are what people and other tools start from; a name is only recorded for content that is whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import orjson

from ocispec import Descriptor, Platform, fields
from ocispec.errors import InvalidInput, NotFound
from storage import times
from storage.backend import Backend
from storage.errors import translated
from storage.layout import Layout
from storage.presence import is_there

_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Name:
    """A name, what it stands for, where that came from and when it was recorded.

    `platforms` are those that were wanted of an index, whose other manifests need not be there; None is all of them.
    """

    name: str
    descriptor: Descriptor
    source: str
    platforms: tuple[Platform, ...] | None
    recorded: datetime

    def to_json(self) -> bytes:
        """The record as it is kept."""
        return orjson.dumps(
            {
                "name": self.name,
                "descriptor": self.descriptor.to_json(),
                "source": self.source,
                "platforms": None if self.platforms is None else list(map(str, self.platforms)),
                "recorded": self.recorded,
            },
            option=orjson.OPT_INDENT_2,
        )

    @classmethod
    def from_json(cls, raw: bytes, *, at: str) -> Self:
        """The record in `raw`; `at` names it in errors."""
        document = fields.parse_object(raw, at=at)
        descriptor = fields.require(document, "descriptor", dict, at=at)
        platforms = fields.strings(document, "platforms", at=at)
        return cls(
            name=fields.require(document, "name", str, at=at),
            descriptor=Descriptor.from_json(descriptor, at=f"{at}.descriptor"),
            source=fields.require(document, "source", str, at=at),
            platforms=tuple(map(Platform.parse, platforms)) or None,
            recorded=times.require(document, "recorded", at=at),
        )


class Names:
    """The names of a store. Thread-safe."""

    def __init__(self, backend: Backend, layout: Layout) -> None:
        self._backend, self._layout = backend, layout

    def put(self, name: str, descriptor: Descriptor, *, source: str, platforms: tuple[Platform, ...] | None = None) -> Name:
        """Record that `name` stands for `descriptor`, which came from `source`; an older record is replaced.

        Raises:
            InvalidInput: an empty name.
            StoreFull, Denied, Unavailable: the disk.
        """
        if not name:
            raise InvalidInput("name: it is empty")
        record = Name(name=name, descriptor=descriptor, source=source, platforms=platforms, recorded=datetime.now(UTC))
        with translated(f"name {name}"):
            self._backend.put(self._layout.name(name), record.to_json())
        return record

    def get(self, name: str) -> Name:
        """The record of a name.

        Raises:
            NotFound: no such name.
        """
        with translated(f"name {name}"):
            return Name.from_json(self._backend.fs.cat_file(self._layout.name(name)), at=f"name {name}")

    def delete(self, name: str) -> None:
        """Forget a name; its content stays.

        Raises:
            NotFound: no such name.
        """
        path = self._layout.name(name)
        with translated(f"name {name}"):
            if not is_there(self._backend.fs, path):
                raise NotFound(f"name {name}: not there")
            self._backend.fs.rm_file(path)

    def __iter__(self) -> Iterator[Name]:
        """All names, sorted. One that is deleted while they are read is left out."""
        with translated("names"):
            records = [record for entry in self._entries() if (record := self._found(entry["name"])) is not None]
        yield from sorted(records, key=lambda record: record.name)

    def listing(self) -> dict[str, object]:
        """What tells whether any name was recorded, replaced or deleted since: each record's path, with its version."""
        return {entry["name"]: _version(entry) for entry in self._entries()}

    def _entries(self) -> list[dict[str, Any]]:
        try:
            entries = self._backend.fs.ls(self._layout.names, detail=True)
        except FileNotFoundError:
            return []
        return [entry for entry in entries if entry["name"].endswith(_SUFFIX)]

    def _found(self, path: str) -> Name | None:
        try:
            return Name.from_json(self._backend.fs.cat_file(path), at=path)
        except FileNotFoundError:
            return None


def _version(entry: dict[str, Any]) -> object:
    """What changes when a file is replaced: its inode on a disk, its tag or time on an object store, as fsspec shows it."""
    return next((entry[key] for key in ("ino", "ETag", "etag", "LastModified", "created") if key in entry), None)
