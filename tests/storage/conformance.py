"""The locations of the conformance suite. Every test with the fixture `place` runs once at each location.

One line in `BACKENDS` adds a backend. The tests are in the other modules of this package; each test name states the behaviour
that it guards.
"""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fsspec.core import url_to_fs

from prefect_dist.ocispec import Digest
from prefect_dist.storage import ContentStore, open_store

EMPTY = Digest.of(b"")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A location for a store, with direct access to its files. Paths are relative to `url`.

    `outlives` is True if another process can resume an ingest.
    """

    url: str
    outlives: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def open(self) -> ContentStore:
        return open_store(self.url, options=self.options)

    def count_writes(self, count: int) -> int:
        """Return the number of concurrent writes of a test: a third on S3, where a write takes much longer and costs more."""
        return count // 3 if self.url.startswith("s3://") else count

    def files(self) -> dict[str, bytes]:
        fs, root = url_to_fs(self.url, **self.options)
        found = [path for path in fs.find(root) if path != root]  # SeaweedFS raises this for an empty bucket
        return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in found}

    def plant(self, path: str, data: bytes) -> None:
        fs, root = url_to_fs(self.url, **self.options)
        self.remove(path)  # blobs are read-only
        fs.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{root}/{path}", data)

    def remove(self, path: str) -> None:
        fs, root = url_to_fs(self.url, **self.options)
        if fs.exists(f"{root}/{path}"):
            fs.rm_file(f"{root}/{path}")

    def clear(self) -> None:
        fs, root = url_to_fs(self.url, **self.options)
        if fs.exists(root):
            fs.rm(root, recursive=True)


def _in_s3(request: pytest.FixtureRequest) -> Place:
    server = request.getfixturevalue("s3")
    return Place(url=f"{server.url}/{uuid.uuid4().hex}", outlives=False, options=server.storage_options)


def _on_path(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.getfixturevalue("tmp_path")
    return directory / "a store"


BACKENDS: dict[str, Callable[[pytest.FixtureRequest], Place]] = {
    "path": lambda request: Place(url=str(_on_path(request))),
    "memory": lambda _: Place(url=f"memory://{uuid.uuid4().hex}", outlives=False),
    "s3": _in_s3,
}


def noise(size: int, *, seed: int = 1) -> bytes:
    """Return random bytes that depend only on the seed."""
    return random.Random(seed).randbytes(size)


def ingest(store: ContentStore, data: bytes, *, ref: str = "ref", algorithm: str = "sha256") -> Digest:
    """Commit `data` in one step."""
    expected = Digest.of(data, algorithm=algorithm)
    with store.writer(ref, expected=expected, total=len(data)) as writer:
        writer.write(data)
        return writer.commit()


def blob_path(digest: Digest) -> str:
    """Return the path of a blob in an image layout (image-spec 1.1, image-layout.md)."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def ingest_path(ref: str) -> str:
    """Return the path of the data of an ingest. Its record has the same path plus `.json`."""
    return f"ingest/{Digest.of(ref.encode()).hex}"


def assert_resumes(place: Place, stores: tuple[ContentStore, ContentStore], size: int, *, percent: int) -> None:
    """Stop an ingest of one store halfway, resume it in another store, and check the blob."""
    data, cut = noise(size), size * percent // 100
    digest = Digest.of(data)
    one, other = stores
    with one.writer("ref", expected=digest, total=size) as writer:
        writer.write(data[:cut])
    with other.writer("ref", expected=digest, total=size) as writer:
        assert writer.offset == cut
        writer.write(memoryview(data)[cut:])
        writer.commit()
    assert place.files()[blob_path(digest)] == data
