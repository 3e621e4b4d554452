"""Content that gc removes and keeps, at every location; leases, verification and quarantine."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest, mediatypes
from prefect_dist.ocispec.errors import AlreadyExists, Corrupt, InvalidInput, NotFound
from prefect_dist.storage import ContentStore, gc, open_store
from prefect_dist.storage.presence import reachable_digests
from prefect_dist.storage.verify import verify
from tests import images
from tests.images import BuiltImage
from tests.peers.seaweedfs import S3Server
from tests.storage.conformance import Place, blob_path, ingest, ingest_path, noise

NOW = timedelta(
    seconds=-60
)  # a negative grace period, so that any content is old enough, even if the clock of a server is ahead


def put(store: ContentStore, image: BuiltImage) -> Descriptor:
    """Write the content of an image without a name, and return its root."""
    for content in (*image.blobs.values(), *(manifest.raw for manifest in image.manifests)):
        if not store.holds(Descriptor(media_type="x", digest=Digest.of(content), size=len(content))):
            ingest(store, content)
    digest, media_type, size = image.root
    return Descriptor(media_type=media_type, digest=Digest.parse(digest), size=size)


def blobs(store: ContentStore) -> set[str]:
    return {str(info.digest) for info in store.walk()}


def test_gc_keeps_content_below_names_and_removes_the_rest(store: ContentStore) -> None:
    kept, gone = images.index([images.image(1), images.image(2, platform="linux/arm64")]), images.image(3)
    store.names.put("kept", put(store, kept), source="x")
    put(store, gone)
    stray = ingest(store, b"stray")

    swept = gc.collect(store, grace=NOW, dry_run=False)

    assert blobs(store) == set(kept.descriptors)
    assert {str(info.digest) for info in swept.blobs} == {*gone.descriptors, str(stray)}
    assert (swept.kept, swept.leftovers) == (len(kept.descriptors), ())


def test_content_of_two_names_is_removed_after_both_names(store: ContentStore) -> None:
    one, other = images.image(4), images.index([images.image(4)])
    store.names.put("one", put(store, one), source="x")
    store.names.put("other", put(store, other), source="x")
    store.names.delete("one")
    gc.collect(store, grace=NOW, dry_run=False)
    assert blobs(store) == set(other.descriptors)
    store.names.delete("other")
    gc.collect(store, grace=NOW, dry_run=False)
    assert blobs(store) == set()


def test_a_dry_run_reports_the_same_and_removes_nothing(store: ContentStore) -> None:
    put(store, images.image(5))
    before = blobs(store)
    planned = gc.collect(store, grace=NOW, dry_run=True)
    assert blobs(store) == before == {str(info.digest) for info in planned.blobs}
    assert set(gc.collect(store, grace=NOW, dry_run=False).blobs) == set(planned.blobs)


def test_content_younger_than_the_grace_period_stays(store: ContentStore) -> None:
    put(store, images.image(6))
    assert not gc.collect(store, grace=timedelta(hours=1), dry_run=False).blobs


def test_a_lease_protects_the_content_below_its_root_until_it_is_released(store: ContentStore) -> None:
    image = images.image(7)
    root = put(store, image)
    with store.leases.hold() as lease:
        lease.take(root)
        gc.collect(store, grace=NOW, dry_run=False)
        assert blobs(store) == set(image.descriptors)
    assert not list(store.leases.roots())
    gc.collect(store, grace=NOW, dry_run=False)
    assert blobs(store) == set()


def test_a_lease_on_missing_content_protects_the_content_when_it_arrives(store: ContentStore) -> None:
    image = images.image(8)
    digest, media_type, size = image.root
    with store.leases.hold() as lease:
        lease.take(Descriptor(media_type=media_type, digest=Digest.parse(digest), size=size))
        put(store, image)
        gc.collect(store, grace=NOW, dry_run=False)
        assert blobs(store) == set(image.descriptors)


def test_the_lease_of_a_dead_run_expires_at_once_if_locks_show_it(place: Place, store: ContentStore) -> None:
    image = images.image(9)
    root = put(store, image)
    record = {"roots": [root.to_json()], "locked": place.outlives}
    place.plant("leases/killed.0.json", json.dumps(record).encode())
    planned = gc.collect(store, grace=NOW, dry_run=True)
    assert "leases/killed.0.json" in place.files()
    swept = gc.collect(store, grace=NOW, dry_run=False)
    assert (planned.blobs, planned.leftovers) == (swept.blobs, swept.leftovers)
    assert blobs(store) == (set() if place.outlives else set(image.descriptors))
    assert ("leases/killed.0.json" in place.files()) == (not place.outlives)


def test_a_lease_without_a_lock_expires_after_a_week(place: Place, store: ContentStore) -> None:
    root = put(store, images.image(9))
    place.plant("leases/dead.0.json", json.dumps({"roots": [root.to_json()], "locked": False}).encode())
    week = timedelta(days=7)
    assert list(store.leases.roots(now=datetime.now(UTC) + week - timedelta(hours=1))) == [root]
    assert not list(store.leases.roots(now=datetime.now(UTC) + week + timedelta(hours=1)))


def test_content_that_a_writer_asked_for_counts_as_new_on_a_disk(place: Place, store: ContentStore) -> None:
    digest = ingest(store, b"data")
    (before,) = store.walk()
    with pytest.raises(AlreadyExists):
        store.writer("other", expected=digest, total=4)
    (after,) = store.walk()
    assert (after.committed > before.committed) == place.outlives


def test_a_manifest_that_cannot_be_read_stops_gc_before_it_removes_anything(place: Place, store: ContentStore) -> None:
    root = put(store, images.image(10))
    store.names.put("damaged", root, source="x")
    put(store, images.image(11))
    before = blobs(store)
    place.plant(blob_path(root.digest), b"x" * root.size)
    with pytest.raises(Corrupt, match=str(root.digest)):
        gc.collect(store, grace=NOW, dry_run=False)
    assert blobs(store) == before


def test_a_name_that_cannot_be_read_stops_gc_before_it_removes_anything(place: Place, store: ContentStore) -> None:
    root = put(store, images.image(10))
    store.names.put("damaged", root, source="x")
    (path,) = (path for path in place.files() if path.startswith("names/"))
    place.plant(path, b"")
    before = blobs(store)
    with pytest.raises(
        InvalidInput, match=rf"^name damaged: damaged record .*{path} .*; remove the name with dist rm damaged$"
    ):
        gc.collect(store, grace=NOW, dry_run=False)
    assert blobs(store) == before
    store.names.delete("damaged")
    gc.collect(store, grace=NOW, dry_run=False)
    assert blobs(store) == set()


@pytest.mark.parametrize(("hours", "short"), [(0, True), (23, True), (24, False), (48, False)])
def test_a_short_grace_period_is_a_hazard_only_on_a_disk_without_shared_locks(
    place: Place, store: ContentStore, hours: int, *, short: bool
) -> None:
    grace = timedelta(hours=hours)
    assert gc.find_hazard(store, grace=grace) is None
    store._backend.can_exclude_gc = False  # as on an NFS mount with local_lock=all
    warning = gc.find_hazard(store, grace=grace)
    assert (warning is not None) == short
    assert warning is None or warning.startswith(
        f"gc of {place.url}: the locks of this file system do not exclude other machines"
    )


def test_content_with_two_media_types_is_also_followed_as_a_manifest(store: ContentStore) -> None:
    root = put(store, image := images.image(12))
    as_blob = Descriptor(media_type=mediatypes.OCTET_STREAM, digest=root.digest, size=root.size)
    assert {str(digest) for digest in reachable_digests(store, [as_blob, root])} == set(image.descriptors)


def test_a_sparse_index_protects_its_present_manifests(store: ContentStore) -> None:
    here, absent = images.image(13), images.image(14, platform="linux/arm64")
    index = images.index([here, absent])
    root = put(store, index)
    store.names.put("sparse", root, source="x")
    for digest in set(absent.descriptors) - set(here.descriptors):
        store.delete(Digest.parse(digest))
    assert not gc.collect(store, grace=NOW, dry_run=False).blobs


# Leftovers on a disk


def make_older(path: Path, *, hours: int) -> None:
    then = (datetime.now(UTC) - timedelta(hours=hours)).timestamp()
    os.utime(path, (then, then))


@pytest.fixture
def disk(tmp_path: Path) -> ContentStore:
    store = open_store(str(tmp_path))
    store.prepare()
    return store


@pytest.mark.parametrize("left", [("data",), ("record",), ("data", "record")])
def test_an_old_ingest_is_removed_with_or_without_its_record(tmp_path: Path, disk: ContentStore, left: tuple[str, ...]) -> None:
    paths = {"data": tmp_path / ingest_path("ref"), "record": tmp_path / f"{ingest_path('ref')}.json"}
    with disk.writer("ref") as writer:
        writer.write(b"some")
    for kind, path in paths.items():
        make_older(path, hours=25) if kind in left else path.unlink()

    swept = gc.collect(disk, grace=timedelta(hours=24), dry_run=False)

    assert swept.leftovers == (str(paths["data"]),)
    assert not list((tmp_path / "ingest").iterdir())


def test_an_ingest_with_recent_data_and_an_old_record_stays(tmp_path: Path, disk: ContentStore) -> None:
    with disk.writer("ref") as writer:
        writer.write(b"some")
    make_older(tmp_path / f"{ingest_path('ref')}.json", hours=25)
    assert not gc.collect(disk, grace=timedelta(hours=24), dry_run=False).leftovers
    assert disk.status("ref").offset == 4


def test_an_old_ingest_with_a_writer_stays(tmp_path: Path, disk: ContentStore) -> None:
    with disk.writer("ref") as writer:
        writer.write(b"some")
        for path in (tmp_path / "ingest").iterdir():
            make_older(path, hours=25)
        assert not gc.collect(disk, grace=timedelta(hours=24), dry_run=False).leftovers
        assert writer.commit() == Digest.of(b"some")


def test_temporary_files_of_killed_processes_are_removed_after_an_hour(tmp_path: Path, disk: ContentStore) -> None:
    (tmp_path / "names").mkdir(exist_ok=True)
    old, young = tmp_path / "index.json.0123.new", tmp_path / "names/x.json.4567.new"
    for path in (old, young):
        path.write_bytes(b"")
    make_older(old, hours=2)
    assert gc.collect(disk, grace=NOW, dry_run=True).leftovers == (str(old),)
    assert gc.collect(disk, grace=NOW, dry_run=False).leftovers == (str(old),)
    assert not old.exists()
    assert young.exists()


# Leftovers on S3


def test_an_upload_of_a_dead_process_is_found_and_aborted(s3: S3Server) -> None:
    prefix = f"{s3.bucket}/abandoned"
    store = open_store(f"s3://{prefix}", options=s3.storage_options)
    data = noise(9_000_000)
    store.writer("ref", expected=Digest.of(data), total=20_000_000).write(
        data
    )  # one part is uploaded, and the process forgets the upload
    objects, soon = store._backend, datetime.now(UTC) + timedelta(minutes=1)
    place = f"{prefix}/{blob_path(Digest.of(data))}"

    assert list(objects.sweep(prefix, soon - timedelta(days=1), dry_run=False)) == []  # type: ignore[attr-defined]
    assert list(objects.sweep(f"{prefix}-else", soon, dry_run=False)) == []  # type: ignore[attr-defined]
    assert list(objects.sweep(prefix, soon, dry_run=True)) == [place]  # type: ignore[attr-defined]
    assert list(objects.sweep(prefix, soon, dry_run=False)) == [place]  # type: ignore[attr-defined]
    assert list(objects.sweep(prefix, soon, dry_run=False)) == []  # type: ignore[attr-defined]


# Verification


def test_corrupt_blobs_are_quarantined_and_sound_blobs_are_counted(place: Place, store: ContentStore) -> None:
    image = images.image(20)
    put(store, image)
    digest = Digest.parse(list(image.blobs)[-1])
    wrong = bytes(len(image.blobs[str(digest)]))
    place.plant(blob_path(digest), wrong)

    verified = verify(store, store.walk())

    assert verified.corrupt == (digest,)
    assert verified.sound == len(image.descriptors) - 1
    assert blobs(store) == set(image.descriptors) - {str(digest)}
    assert place.files()[f"quarantine/sha256/{digest.hex}"] == wrong
    ingest(store, image.blobs[str(digest)])  # quarantined blobs do not affect the store
    assert verify(store, store.walk()).sound == len(image.descriptors)


def test_a_blob_that_is_removed_during_verification_is_no_failure(store: ContentStore) -> None:
    digest = ingest(store, b"data")
    infos = list(store.walk())
    store.delete(digest)
    assert verify(store, infos) == verify(store, ())


def test_a_blob_that_replaced_a_corrupt_one_is_not_quarantined(place: Place, store: ContentStore) -> None:
    digest = ingest(store, noise(1000))
    place.plant(blob_path(digest), b"wrong")
    (wrong,) = store.walk()
    place.plant(blob_path(digest), noise(1000))  # simulates another verification and a fetch
    assert not store.quarantine(wrong)
    assert store.read(digest) == noise(1000)


def test_a_corrupt_blob_that_is_touched_during_verification_is_quarantined(place: Place, store: ContentStore) -> None:
    digest = ingest(store, noise(1000))
    place.plant(blob_path(digest), b"wrong")
    listed = [replace(info, committed=info.committed - timedelta(hours=1)) for info in store.walk()]

    assert verify(store, listed).corrupt == (digest,)
    assert list(store.walk()) == []


def test_quarantining_a_missing_blob_returns_false(store: ContentStore) -> None:
    digest = ingest(store, b"data")
    (info,) = store.walk()
    store.delete(digest)
    assert not store.quarantine(info)
    with pytest.raises(NotFound):
        store.info(digest)
