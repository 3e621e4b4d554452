"""Names and the `index.json` that is derived from them, at every location of the conformance suite."""

import json
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.storage import ContentStore, Name
from tests.storage.conformance import Place, ingest, noise

FULL = Descriptor(
    media_type="application/vnd.oci.image.manifest.v1+json",
    digest=Digest.of(b"data"),
    size=4,
    urls=("https://example.com/x",),
    annotations=(("a", "1"), ("org.opencontainers.image.ref.name", "as its publisher called it")),
    data=b"data",
    artifact_type="application/x",
    platform=Platform(os="linux", architecture="arm64", variant="v8"),
)
ODD = [
    "docker.io/library/redis:7",
    "a/b",
    "a%2Fb",
    "..",
    "../../up",
    "/",
    "ключ/名前:β",
    "with blank and\nnewline",
    "x" * 3000,
    "x" * 2999 + "y",
    "UPPER",
    "upper",
    "[a]*?",
    "name.json",
]


def descriptor(number: int) -> Descriptor:
    data = noise(10, seed=number)
    return Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=Digest.of(data), size=10)


def index_of(place: Place) -> dict[str, str]:
    document = json.loads(place.files()["index.json"])
    assert (document["schemaVersion"], document["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    return {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in document["manifests"]}


def test_a_name_keeps_its_whole_descriptor_and_its_source(place: Place, store: ContentStore) -> None:
    before = datetime.now(UTC)
    platforms = (Platform.parse("linux/arm/v6"), Platform.parse("windows(10.0.17763)/amd64"))
    put = store.names.put("name", FULL, source="registry.example/name", platforms=platforms)
    assert (put.name, put.descriptor, put.source, put.platforms) == ("name", FULL, "registry.example/name", platforms)
    assert before <= put.recorded <= datetime.now(UTC)
    assert place.open().names.get("name") == put
    assert list(place.open().names) == [put]


def test_a_name_can_be_recorded_again_for_another_descriptor(store: ContentStore) -> None:
    store.names.put("name", descriptor(1), source="one")
    store.names.put("name", descriptor(2), source="two")
    assert store.names.get("name").descriptor == descriptor(2)
    assert len(list(store.names)) == 1


def test_recording_an_unchanged_name_keeps_its_time_and_writes_nothing(place: Place, store: ContentStore) -> None:
    first = store.names.put("name", FULL, source="x")
    before = place.files()
    assert store.names.put("name", FULL, source="x") == first
    assert place.files() == before
    assert store.names.put("name", FULL, source="x", platforms=(Platform.parse("linux/arm64"),)).recorded > first.recorded


def test_a_deleted_name_is_missing_and_its_content_stays(store: ContentStore) -> None:
    digest = ingest(store, b"data")
    store.names.put("name", FULL, source="x")
    store.names.delete("name")
    assert list(store.names) == []
    assert store.read(digest) == b"data"
    for look in (store.names.get, store.names.delete):
        with pytest.raises(NotFound, match=r"^name name: not found$"):
            look("name")


def test_unusual_names_do_not_collide(place: Place, store: ContentStore) -> None:
    for number, name in enumerate(ODD):
        store.names.put(name, descriptor(number), source="x")
    assert [store.names.get(name).descriptor for name in ODD] == [descriptor(number) for number in range(len(ODD))]
    assert [record.name for record in store.names] == sorted(ODD)
    assert all(path.count("/") == 1 and len(path) <= 255 for path in place.files())
    for name in ODD:
        store.names.delete(name)
    assert place.files() == {}


@pytest.mark.parametrize("name", ["", "\udcff"])
def test_an_empty_or_undecodable_name_is_refused(store: ContentStore, name: str) -> None:
    with pytest.raises(InvalidInput):
        store.names.put(name, FULL, source="x")


@pytest.mark.parametrize(
    "record", [b"", b"[]", b"{}", b'{"name": "name", "source": "x", "recorded": "now", "descriptor": DESCRIPTOR}']
)
def test_the_error_of_a_damaged_name_has_its_path(place: Place, store: ContentStore, record: bytes) -> None:
    store.names.put("name", FULL, source="x")
    (path,) = place.files()
    place.plant(path, record.replace(b"DESCRIPTOR", json.dumps(FULL.to_json()).encode()))
    store.names.put("other", FULL, source="x")
    says = rf"^name name: damaged record .*{path} \(.+\); remove the name with dist rm name$"
    with pytest.raises(InvalidInput, match=says):
        store.names.get("name")
    with pytest.raises(InvalidInput, match=says):  # if the name were skipped, gc would remove its content
        list(store.names)
    known, (error,) = store.names.read()
    assert [name.name for name in known] == ["other"]
    assert re.match(says, str(error))
    assert "name" in store.names
    store.names.delete("name")
    assert [name.name for name in store.names] == ["other"]


def test_a_damaged_name_can_be_recorded_again(place: Place, store: ContentStore) -> None:
    store.names.put("name", FULL, source="x")
    (path,) = place.files()
    place.plant(path, b"damaged")
    store.names.put("name", FULL, source="x")
    assert store.names.get("name").descriptor == FULL


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("with 'blank'", "remove the name with dist rm 'with '\"'\"'blank'\"'\"''"),
        ("x" * 120, f"remove the name with dist rm {'x' * 120}"),
        ("x" * 121, "remove this file"),  # the file name has only a part of the name
    ],
)
def test_the_error_of_a_damaged_name_has_a_remedy(place: Place, store: ContentStore, name: str, remedy: str) -> None:
    store.names.put(name, FULL, source="x")
    (path,) = place.files()
    place.plant(path, b"damaged")
    _, (error,) = store.names.read()
    assert str(error).endswith(f"; {remedy}")
    assert path in str(error)
    assert ("s3://" in str(error)) == place.url.startswith("s3://")


def test_a_record_with_an_unknown_file_name_is_reported_without_a_name(place: Place, store: ContentStore) -> None:
    place.plant("names/strange.json", b"{}")
    _, (error,) = store.names.read()
    assert re.match(
        r"^a name: damaged record .*/names/strange.json \(record.descriptor: missing.*\); remove this file$", str(error)
    )


def test_unknown_files_are_not_names(place: Place, store: ContentStore) -> None:
    store.names.put("name", FULL, source="x")
    place.plant("names/README", b"strange")
    place.plant("names/name.json.0123.new", b"what an interrupted writer left")
    assert [record.name for record in store.names] == ["name"]


def test_a_name_that_is_deleted_during_the_listing_is_left_out(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        store.names.put(name, FULL, source="x")
    fs = store._backend.fs
    ls = fs.ls

    def delete_after(path: str, *, detail: bool) -> object:
        monkeypatch.undo()
        paths = ls(path, detail=detail)
        store.names.delete("one")
        return paths

    monkeypatch.setattr(fs, "ls", delete_after)
    assert [record.name for record in store.names] == ["two"]


def test_concurrent_writers_of_different_names_lose_no_name(place: Place) -> None:
    def record(number: int) -> Name:
        return place.open().names.put(f"name-{number}", descriptor(number), source="x")

    with ThreadPoolExecutor(8) as threads:
        records = list(threads.map(record, range(place.count_writes(100))))
    assert list(place.open().names) == sorted(records, key=lambda record: record.name)


def test_concurrent_writers_of_one_name_leave_one_valid_record(place: Place) -> None:
    def record_and_read(number: int) -> Name:
        names = place.open().names
        names.put("name", descriptor(number), source=str(number))
        return names.get("name")

    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(record_and_read, range(place.count_writes(100))))
    (last,) = place.open().names
    for record in (*seen, last):
        assert record.descriptor == descriptor(int(record.source))
    assert len(place.files()) == 1


# index.json


def test_a_new_store_is_an_empty_image_layout(place: Place, store: ContentStore) -> None:
    store.writer("ref").close()
    assert json.loads(place.files()["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert index_of(place) == {}


def test_the_index_lists_every_image_under_its_full_name(place: Place, store: ContentStore) -> None:
    for number, name in enumerate(ODD):
        store.names.put(name, descriptor(number), source="x")
    store.update_index()
    assert index_of(place) == {name: str(descriptor(number).digest) for number, name in enumerate(ODD)}
    for name in ODD[1:]:
        store.names.delete(name)
    store.update_index()
    assert list(index_of(place)) == ODD[:1]


def test_an_entry_of_the_index_is_the_descriptor_with_the_store_name(place: Place, store: ContentStore) -> None:
    store.names.put("our name", FULL, source="x")
    store.update_index()
    (entry,) = json.loads(place.files()["index.json"])["manifests"]
    assert entry == {**FULL.to_json(), "annotations": {"a": "1", "org.opencontainers.image.ref.name": "our name"}}


def record_file_calls(patch: pytest.MonkeyPatch, store: ContentStore) -> set[tuple[str, str]]:
    """Record the calls that read or write a file. On a disk, opening a file counts as reading it."""
    fs, seen = store._backend.fs, set[tuple[str, str]]()

    def record_call(method: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def record(path: str, *args: Any, **kwargs: Any) -> Any:
            seen.add((method, path.rpartition("/")[2]))
            return call(path, *args, **kwargs)

        return record

    for method in ("cat_file", "pipe_file", "open"):
        patch.setattr(fs, method, record_call(method, getattr(fs, method)))
    return seen


def test_a_current_index_is_not_written_and_no_name_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        place.open().names.put(f"name-{number}", descriptor(number), source="x")
    place.open().update_index()
    before = place.files()

    store = place.open()
    store.names.put("name-1", descriptor(1), source="x")  # the update of a run without changes
    seen = record_file_calls(monkeypatch, store)
    store.update_index()

    assert seen - {("open", "index.json")} == {("cat_file", "index.json")}
    assert place.files() == before


@pytest.mark.parametrize("by", ["deleted", "replaced", "added"])
def test_the_index_is_updated_after_any_change(place: Place, store: ContentStore, by: str) -> None:
    changes: dict[str, Callable[[], object]] = {
        "deleted": lambda: store.names.delete("name-1"),
        "replaced": lambda: store.names.put("name-1", descriptor(5), source="x"),
        "added": lambda: store.names.put("name-5", descriptor(5), source="x"),
    }
    for number in range(3):
        store.names.put(f"name-{number}", descriptor(number), source="x")
    store.update_index()
    changes[by]()
    place.open().update_index()
    assert index_of(place) == {name.name: str(name.descriptor.digest) for name in store.names}


@pytest.mark.parametrize("change", [b'"digest"', b'"manifests"', b"{"])
def test_an_index_that_another_tool_changed_is_written_again(place: Place, store: ContentStore, change: bytes) -> None:
    store.names.put("name", descriptor(1), source="x")
    store.update_index()
    right = place.files()["index.json"]
    place.plant("index.json", right.replace(change, b'"other"', 1))
    store.update_index()
    assert place.files()["index.json"] == right


def test_on_a_disk_a_new_record_with_a_reused_inode_is_noticed(tmp_path: Path) -> None:
    place = Place(url=str(tmp_path))
    store = place.open()
    store.names.put("name", descriptor(1), source="x")
    store.update_index()
    (record,) = (tmp_path / "names").iterdir()
    before = record.stat()
    record.write_bytes(record.read_bytes().replace(str(descriptor(1).digest).encode(), str(descriptor(2).digest).encode()))
    os.utime(record, ns=(before.st_atime_ns, before.st_mtime_ns + 4_000_000))  # a tick of the kernel's clock
    store.update_index()
    assert record.stat().st_ino == before.st_ino
    assert index_of(place) == {"name": str(descriptor(2).digest)}


def test_a_damaged_name_does_not_prevent_listing_other_names(
    place: Place, store: ContentStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.names.put("damaged", descriptor(1), source="x")
    (path,) = place.files()
    place.plant(path, b"damaged")
    store.names.put("name", descriptor(2), source="x")
    with caplog.at_level(logging.WARNING, "prefect_dist.storage.index"):
        store.update_index()
    assert index_of(place) == {"name": str(descriptor(2).digest)}
    assert [path in message for message in caplog.messages] == [True]


def test_an_existing_layout_of_another_tool_is_used_unchanged(place: Place, store: ContentStore) -> None:
    place.plant("oci-layout", b'{"imageLayoutVersion": "1.0.0", "more": 1}')
    place.plant("index.json", b'{"schemaVersion": 2, "manifests": []}')
    ingest(store, b"data")
    assert place.files()["oci-layout"] == b'{"imageLayoutVersion": "1.0.0", "more": 1}'
    assert place.files()["index.json"] == b'{"schemaVersion": 2, "manifests": []}'


def test_the_index_is_complete_after_concurrent_updates(place: Place) -> None:
    def record(number: int) -> None:
        store = place.open()
        store.names.put(f"name-{number}", descriptor(number), source="x")
        store.update_index()

    count = place.count_writes(40)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(record, range(count)))
    assert index_of(place) == {f"name-{number}": str(descriptor(number).digest) for number in range(count)}
