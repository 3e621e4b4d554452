"""No path leaves a layout, such as one on a USB stick: links and special files are refused for reading and writing."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec.errors import Denied, DistError
from prefect_dist.remotes.layout_remote import LayoutRemote
from tests import images
from tests.remotes.layouts import (
    blob,
    blob_file,
    fetch,
    files_in,
    layout,
    names_in,
    open_layouts,
    publish,
    root_of,
    upload,
    write_layout,
)
from tests.storage.conformance import ingest_path

ONE, TWO = images.image(1800), images.image(1801)
SMALL = b"content"
BIG = bytes(2_000_000)


@pytest.fixture
def remote() -> Iterator[LayoutRemote]:
    with open_layouts() as remote:
        yield remote


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A layout, whose files the tests link into another layout."""
    return write_layout(tmp_path / "outside", {"v1": ONE})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "layout", {"v1": ONE})


def move_out(place: Path, outside: Path, name: str) -> Path:
    """Replace a file or directory of a layout by a link to the same content outside."""
    target = outside / name
    path = place / name
    path.rename(place.parent / "old")
    path.symlink_to(target)
    return target


def read_all(remote: LayoutRemote, place: Path) -> None:
    source = remote.open_source(layout(place))
    fetch(source, source.resolve(layout(place, ":v1")))


def write_all(remote: LayoutRemote, place: Path) -> None:
    publish(remote.open_target(layout(place)), TWO, "v2")


def state(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return the time and content of each file."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


MANIFEST = f"blobs/{ONE.root.digest.replace(':', '/')}"


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256", MANIFEST, "index.json", "oci-layout"])
def test_a_link_to_the_outside_is_not_read(remote: LayoutRemote, place: Path, outside: Path, name: str) -> None:
    read_all(remote, place)
    move_out(place, outside, name)
    with open_layouts() as other, pytest.raises(Denied, match="is a link that leads out of the layout") as caught:
        read_all(other, place)
    assert f"oci:{place}" in str(caught.value)


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256", "index.json", "oci-layout"])
def test_nothing_is_written_through_a_link(remote: LayoutRemote, place: Path, outside: Path, name: str) -> None:
    move_out(place, outside, name)
    before = state(outside)
    with pytest.raises(Denied, match="is a link that leads out of the layout"):
        write_all(remote, place)
    assert state(outside) == before


def test_an_existing_blob_that_is_a_link_to_the_outside_is_not_used_or_touched(
    remote: LayoutRemote, place: Path, outside: Path
) -> None:
    target = move_out(place, outside, MANIFEST)
    os.utime(target, (1, 1))
    raw = ONE.manifests[-1].raw
    for work in (
        lambda: remote.open_target(layout(place)).has(root_of(ONE)),
        lambda: upload(remote.open_target(layout(place)), raw, root_of(ONE)),
        lambda: remote.open_target(layout(place)).put(raw, root_of(ONE), tag="v2"),
    ):
        with pytest.raises(Denied, match="is a link that leads out of the layout"):
            work()
    assert target.stat().st_mtime == 1
    assert names_in(place) == {"v1": ONE.root.digest}


def link_directory(place: Path, outside: Path) -> None:
    (place / "ingest").symlink_to(outside)


def link_data(place: Path, outside: Path) -> None:
    (place / "ingest").mkdir()
    for data in (SMALL, BIG):
        (place / ingest_path(f"layer-{blob(data).digest}")).symlink_to(outside / "index.json")


def link_record(place: Path, outside: Path) -> None:
    (place / "ingest").mkdir()
    for data in (SMALL, BIG):
        (place / (ingest_path(f"layer-{blob(data).digest}") + ".json")).symlink_to(outside / "index.json")


def put_pipe(place: Path, _outside: Path) -> None:
    (place / "ingest").mkdir()
    for data in (SMALL, BIG):
        os.mkfifo(place / ingest_path(f"layer-{blob(data).digest}"))


def link_lock(place: Path, outside: Path) -> None:
    (place / "index.json.lock").symlink_to(outside / "new")


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize("prepare", [link_directory, link_data, link_record, put_pipe])
def test_unfinished_content_is_not_written_through_a_link_or_pipe(
    remote: LayoutRemote, place: Path, outside: Path, data: bytes, prepare: Callable[[Path, Path], None]
) -> None:
    prepare(place, outside)
    before = state(outside)
    with pytest.raises(Denied):
        upload(remote.open_target(layout(place)), data)
    assert state(outside) == before


def test_a_link_that_appears_after_the_first_write_is_not_followed(remote: LayoutRemote, place: Path, outside: Path) -> None:
    target, before = remote.open_target(layout(place)), state(outside)
    upload(target, SMALL)
    (place / ingest_path(f"layer-{blob(BIG).digest}")).symlink_to(outside / "index.json")
    with pytest.raises(Denied, match="symbolic links"):
        upload(target, BIG)
    assert state(outside) == before


def test_the_lock_file_is_not_created_through_a_link(remote: LayoutRemote, place: Path, outside: Path) -> None:
    link_lock(place, outside)
    before = files_in(outside)
    with pytest.raises(DistError, match=r"index.json"):
        write_all(remote, place)
    assert files_in(outside) == before


def test_links_inside_the_layout_and_to_the_layout_are_followed(remote: LayoutRemote, place: Path, tmp_path: Path) -> None:
    (place / "blobs").rename(place / "content")
    (place / "blobs").symlink_to("content")
    (tmp_path / "link").symlink_to(place)
    read_all(remote, tmp_path / "link")
    write_all(remote, tmp_path / "link")
    assert names_in(place) == {"v1": ONE.root.digest, "v2": TWO.root.digest}
    assert blob_file(place, TWO.root.digest).exists()


def test_a_loop_of_links_is_an_error(remote: LayoutRemote, place: Path) -> None:
    (place / "index.json").unlink()
    (place / "index.json").symlink_to("index.json")
    with pytest.raises(DistError):
        read_all(remote, place)
    with pytest.raises(DistError):
        write_all(remote, place)
