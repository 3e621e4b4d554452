"""The places that the conformance suite visits: every test that takes the fixture `place` runs once at each.

A backend is added by one line in `BACKENDS`. The checks are in the test modules beside this one; their names are the list
of bugs that they guard against.
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
    """Where a store may be, with a way round the store to look at its files and to plant some. Paths are below `url`.

    `outlives` tells whether another process can go on with an ingest.
    """

    url: str
    outlives: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def open(self) -> ContentStore:
        return open_store(self.url, options=self.options)

    def files(self) -> dict[str, bytes]:
        fs, root = url_to_fs(self.url, **self.options)
        found = [path for path in fs.find(root) if path != root]  # SeaweedFS's way to say that there is nothing
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
    """Random bytes that depend on the seed alone."""
    return random.Random(seed).randbytes(size)


def ingest(store: ContentStore, data: bytes, *, ref: str = "ref", algorithm: str = "sha256") -> Digest:
    """Commit `data` in one go."""
    expected = Digest.of(data, algorithm=algorithm)
    with store.writer(ref, expected=expected, total=len(data)) as writer:
        writer.write(data)
        return writer.commit()


def blob_path(digest: Digest) -> str:
    """Where the image layout keeps a blob (image-spec 1.1, image-layout.md)."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def ingest_path(ref: str) -> str:
    """Where the data of an ingest is; its record is beside it with `.json`."""
    return f"ingest/{Digest.of(ref.encode()).hex}"


def assert_resumes(place: Place, stores: tuple[ContentStore, ContentStore], size: int, *, percent: int) -> None:
    """Stop an ingest of one store after some of it, go on in the other, and look at the file."""
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
