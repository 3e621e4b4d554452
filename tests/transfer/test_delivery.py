"""Publication of images to repositories and registries: uploads, mounts, backup tags, and tags that others moved."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.errors import Conflict, DistError, NotFound
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.transfer import publishing
from prefect_dist.transfer.delivery import deliver
from prefect_dist.transfer.publishing import Publication
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from prefect_dist.transfer.stats import TransferStats
from tests import images
from tests.fakes.faults import Answer, Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage
from tests.peers.registry import CncfRegistry
from tests.transfer.content import list_requests, put_image, reference_at

ONE, OTHER = images.image(800, layers=2), images.image(801, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])


SIZE = sum(map(len, ONE.blobs.values()))
MANIFEST = ONE.root.size


def publish(session: Session, root: Descriptor, target: Reference) -> tuple[int, int]:
    """Publish an image. Return the number of sent bytes and of mounted blobs."""
    before = session.stats
    publishing.publish(session, Publication(root=root, target=target))
    return session.stats.sent - before.sent, session.stats.mounted - before.mounted


def test_a_publication_sends_no_request_for_delivered_blobs(session: Session, target: FakeRegistry) -> None:
    root = put_image(session, ONE)
    for digest, data in ONE.blobs.items():
        blob = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(digest), size=len(data))
        deliver(session, blob, reference_at(target, "copy:v1"))
    before = len(target.requests)
    assert publish(session, root, reference_at(target, "copy:v1")) == (MANIFEST, 0)
    assert list_requests(target)[before:] == ["HEAD /v2/copy/manifests/v1", "PUT /v2/copy/manifests/v1"]


def test_blobs_are_mounted_from_another_repository_of_the_registry(session: Session, target: FakeRegistry) -> None:
    root = put_image(session, ONE)
    assert publish(session, root, reference_at(target, "first:v1")) == (SIZE + MANIFEST, 0)
    before = len(target.requests)
    assert publish(session, root, reference_at(target, "second:v1")) == (MANIFEST, len(ONE.blobs))
    assert {one.method for one in target.requests[before:]} == {"HEAD", "POST", "PUT"}
    assert not [one for one in target.requests[before:] if one.method == "PUT" and "/uploads/" in one.path]
    assert all("from=first" in one.query for one in target.requests[before:] if one.method == "POST")


def test_a_refused_mount_becomes_an_upload(session: Session) -> None:
    root = put_image(session, ONE)
    with FakeRegistry(mounts="none") as target:
        publish(session, root, reference_at(target, "first:v1"))
        assert publish(session, root, reference_at(target, "second:v1")) == (SIZE + MANIFEST, 0)
        assert target.manifest("second", "v1") == (images.OCI_MANIFEST, ONE.manifests[-1].raw)


def test_manifests_are_pushed_after_their_content_and_the_tag_last(session: Session, target: FakeRegistry) -> None:
    publish(session, put_image(session, INDEX), reference_at(target, "copy:v1"))
    manifests = [one for one in list_requests(target) if "/manifests/" in one]
    *children, checked, tagged = [one.replace("/v2/copy/manifests/", "") for one in manifests]
    assert set(children) == {f"PUT {ONE.root.digest}", f"PUT {OTHER.root.digest}"}
    assert (checked, tagged) == ("HEAD v1", "PUT v1")


def test_a_failed_publication_continues_without_sending_blobs_again(session: Session, target: FakeRegistry) -> None:
    root = put_image(session, ONE)
    target.inject(Fault(method="PUT", path=".*/manifests/v1", action=Answer(500, (), b"")))
    with pytest.raises(DistError):
        publish(session, root, reference_at(target, "copy:v1"))
    before = len(target.requests)
    assert publish(session, root, reference_at(target, "copy:v1")) == (MANIFEST, 0)
    assert list_requests(target)[before:] == ["HEAD /v2/copy/manifests/v1", "PUT /v2/copy/manifests/v1"]


def test_an_image_with_missing_content_in_the_store_is_not_published(session: Session, target: FakeRegistry) -> None:
    root = put_image(session, ONE)
    session.store.delete(Digest.parse(next(iter(ONE.blobs))))
    with pytest.raises(NotFound, match=f"{target.host}/copy:v1: 1 descriptor missing"):
        publish(session, root, reference_at(target, "copy:v1"))
    assert target.requests == []


def test_concurrent_deliveries_of_a_blob_to_one_registry_send_the_blob_once(session: Session, target: FakeRegistry) -> None:
    put_image(session, ONE)
    blobs = [Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(d), size=len(b)) for d, b in ONE.blobs.items()]
    places = [reference_at(target, f"copy{number}:v1") for number in range(8)]
    with ThreadPoolExecutor(8) as executor:
        for blob in blobs:
            list(executor.map(lambda place, blob=blob: deliver(session, blob, place), places))
    assert session.stats == TransferStats(sent=SIZE, mounted=7 * len(blobs), mounted_bytes=7 * SIZE)


def test_an_index_of_indexes_is_published_after_all_content_below_it(session: Session, target: FakeRegistry) -> None:
    inner = images.index([ONE, OTHER])
    outer = images.index([images.image(802, platform="linux/s390x"), inner])
    top = images.index([outer, images.image(803, platform="linux/ppc64le"), inner])
    publish(session, put_image(session, top), reference_at(target, "copy:v1"))
    put = [one.path.rpartition("/")[2] for one in target.find_requests("PUT", "/v2/copy/manifests/.*")]
    assert put[-1] == "v1"
    for parent, children in ((inner, [ONE, OTHER]), (outer, [inner])):
        assert all(put.index(child.root.digest) < put.index(parent.root.digest) for child in children)
    assert put.index(outer.root.digest) < put.index("v1")


SOME = (Platform.parse("linux/arm64"),)


def test_a_sparse_index_is_published_unchanged(session: Session) -> None:
    root = put_image(session, INDEX)
    with FakeRegistry(sparse=True) as target:
        publishing.publish(session, Publication(root=root, target=reference_at(target, "copy:v1"), platforms=SOME))
        assert target.manifest("copy", "v1") == (images.OCI_INDEX, INDEX.manifests[-1].raw)
        assert target.manifest("copy", OTHER.root.digest)
        assert target.manifest("copy", ONE.root.digest) is None


def test_the_error_of_a_registry_that_refuses_sparse_indexes_recommends_rewrite_index(
    session: Session, target: FakeRegistry
) -> None:
    root = put_image(session, INDEX)
    with pytest.raises(NotFound, match=r"MANIFEST_BLOB_UNKNOWN.*; this registry accepts no sparse index, .*rewriteIndex"):
        publishing.publish(session, Publication(root=root, target=reference_at(target, "copy:v1"), platforms=SOME))
    assert target.manifest("copy", "v1") is None


def test_a_rewritten_index_lists_only_the_selected_platforms(session: Session, target: FakeRegistry) -> None:
    root = put_image(session, INDEX)
    publishing.publish(session, Publication(root=root, target=reference_at(target, "copy:v1"), platforms=SOME, rewritten=True))
    expected = filter_index(root, SOME, session.store.manifest)
    assert target.manifest("copy", "v1") == (images.OCI_INDEX, expected.root.data)
    assert target.manifest("copy", OTHER.root.digest)
    assert target.manifest("copy", ONE.root.digest) is None


@pytest.fixture
def old(target: FakeRegistry) -> BuiltImage:
    """The image under the tag that the test overwrites. The store has no content of the image."""
    image = images.index([images.image(810), images.image(811, platform="linux/arm64/v8")])
    images.load(target, "copy", image, "v1")
    return image


def overwrite(session: Session, target: FakeRegistry, backup: Reference) -> None:
    existing = target.manifest("copy", "v1")
    replaces = Digest.of(existing[1]) if existing else None
    publishing.publish(
        session,
        Publication(root=put_image(session, ONE), target=reference_at(target, "copy:v1"), replaces=replaces, backup=backup),
    )


def test_the_backup_tag_is_set_before_the_tag_is_overwritten(session: Session, target: FakeRegistry, old: BuiltImage) -> None:
    overwrite(session, target, reference_at(target, "copy:v1-old"))
    assert target.manifest("copy", "v1-old") == (images.OCI_INDEX, old.manifests[-1].raw)
    assert target.manifest("copy", "v1") == (images.OCI_MANIFEST, ONE.manifests[-1].raw)
    puts = [one.path for one in target.requests if one.method == "PUT" and "/manifests/" in one.path]
    assert puts == ["/v2/copy/manifests/v1-old", "/v2/copy/manifests/v1"]
    blobs = [one.path for one in target.requests if one.method == "GET"]
    assert blobs == [f"/v2/copy/manifests/{old.root.digest}"]  # the repository has the children


def test_a_backup_in_another_registry_has_all_content(session: Session, target: FakeRegistry, old: BuiltImage) -> None:
    with FakeRegistry() as other:
        overwrite(session, target, reference_at(other, "backups/copy:v1"))
        assert other.manifest("backups/copy", "v1") == (images.OCI_INDEX, old.manifests[-1].raw)
        assert all(other.blob("backups/copy", digest) == data for digest, data in old.blobs.items())


def test_a_backup_of_a_sparse_index_has_its_existing_platforms(session: Session) -> None:
    missing = images.image(812, platform="linux/s390x")
    here = images.image(813)
    sparse = images.index([here, missing])
    with FakeRegistry(sparse=True) as target, FakeRegistry(sparse=True) as other:
        images.load(target, "copy", here)
        target.put_manifest("copy", sparse.manifests[-1].raw, images.OCI_INDEX, tag="v1")
        overwrite(session, target, reference_at(other, "backups/copy:v1"))
        assert other.manifest("backups/copy", "v1") == (images.OCI_INDEX, sparse.manifests[-1].raw)
        assert other.manifest("backups/copy", here.root.digest)
        assert other.manifest("backups/copy", missing.root.digest) is None


def test_a_tag_is_not_overwritten_if_its_backup_fails(session: Session, target: FakeRegistry, old: BuiltImage) -> None:
    target.inject(Fault(method="PUT", path=".*/manifests/v1-old", action=Answer(403, (), b"")))
    with pytest.raises(DistError, match="v1-old"):
        overwrite(session, target, reference_at(target, "copy:v1-old"))
    assert target.manifest("copy", "v1") == (images.OCI_INDEX, old.manifests[-1].raw)


@pytest.mark.parametrize("existing", ["no tag", "the same image"])
def test_no_backup_tag_is_set_if_no_image_is_overwritten(session: Session, target: FakeRegistry, existing: str) -> None:
    if existing == "the same image":
        images.load(target, "copy", ONE, "v1")
    overwrite(session, target, reference_at(target, "copy:v1-old"))
    assert target.manifest("copy", "v1-old") is None


def test_an_existing_backup_is_not_sent_again(session: Session, target: FakeRegistry, old: BuiltImage) -> None:
    target.put_manifest("copy", old.manifests[-1].raw, images.OCI_INDEX, tag="v1-old")
    overwrite(session, target, reference_at(target, "copy:v1-old"))
    assert "PUT /v2/copy/manifests/v1-old" not in list_requests(target)


def test_concurrent_publications_of_shared_layers_succeed_on_the_cncf_registry(
    session: Session, registry: CncfRegistry
) -> None:
    # The CNCF registry refuses a manifest while another request mounts a blob of the manifest.
    root = put_image(session, ONE)
    publish(session, root, Reference.parse(f"{registry.host}/delivery/first:v1"))
    places = [Reference.parse(f"{registry.host}/delivery/r{number // 8}:v{number}") for number in range(64)]
    with ThreadPoolExecutor(16) as executor:
        list(executor.map(lambda place: publish(session, root, place), places))
    assert session.stats == TransferStats(sent=SIZE + 65 * MANIFEST, mounted=8 * len(ONE.blobs), mounted_bytes=8 * SIZE)


def test_a_failed_upload_is_tried_by_a_waiting_publication(session: Session, target: FakeRegistry) -> None:
    root = put_image(session, ONE)
    target.inject(Fault(method="POST", path=".*/uploads/", action=Answer(500, (), b"")))
    places = [reference_at(target, f"copy:v{number}") for number in range(4)]

    def can_publish(place: Reference) -> bool:
        try:
            publish(session, root, place)
        except DistError:
            return False
        return True

    with ThreadPoolExecutor(len(places)) as executor:
        assert sorted(executor.map(can_publish, places)) == [False, True, True, True]


def test_blobs_are_mounted_from_the_source_repository_in_the_same_registry(session: Session, target: FakeRegistry) -> None:
    put_image(session, ONE)
    images.load(target, "source", ONE)
    for digest, data in ONE.blobs.items():
        blob = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(digest), size=len(data))
        deliver(session, blob, reference_at(target, "copy:v1"), origin=reference_at(target, "source:v1"))
    assert session.stats == TransferStats(mounted=len(ONE.blobs), mounted_bytes=SIZE)
    assert {one.query.split("from=")[1] for one in target.requests if one.method == "POST"} == {"source"}


# Others may move the tag after the plan.

NEWER = images.image(815, layers=1)


@pytest.mark.parametrize("planned", ["an image", "no tag"])
@pytest.mark.parametrize("backup", [False, True])
def test_a_tag_that_moved_after_the_plan_is_not_overwritten(
    session: Session, target: FakeRegistry, old: BuiltImage, planned: str, *, backup: bool
) -> None:
    replaces = Digest.parse(old.root.digest) if planned == "an image" else None
    images.load(target, "copy", NEWER, "v1")
    wanted = Publication(
        root=put_image(session, ONE),
        target=reference_at(target, "copy:v1"),
        replaces=replaces,
        backup=reference_at(target, "copy:v1-old") if backup else None,
    )
    moved = (
        f"{target.host}/copy:v1: target tag moved from {replaces or 'no manifest'} to {NEWER.root.digest} "
        "since the plan was made"
    )
    with pytest.raises(Conflict, match=f"^{moved}; run again$"):
        publishing.publish(session, wanted)
    assert target.manifest("copy", "v1") == (images.OCI_MANIFEST, NEWER.manifests[-1].raw)
    assert target.manifest("copy", "v1-old") is None
    assert not [one for one in list_requests(target) if one.startswith("PUT") and "/manifests/v1" in one]


def test_a_tag_that_moves_during_the_uploads_is_not_overwritten(
    session: Session, target: FakeRegistry, old: BuiltImage
) -> None:
    target.inject(Fault(method="POST", path=".*/uploads/", action=Call(lambda: images.load(target, "copy", NEWER, "v1"))))
    with pytest.raises(Conflict, match=f"from {old.root.digest} to {NEWER.root.digest} "):
        publishing.publish(
            session,
            Publication(
                root=put_image(session, ONE), target=reference_at(target, "copy:v1"), replaces=Digest.parse(old.root.digest)
            ),
        )
    assert target.manifest("copy", "v1") == (images.OCI_MANIFEST, NEWER.manifests[-1].raw)


@pytest.mark.parametrize("now", ["the new image", "no tag"])
def test_a_tag_is_set_if_it_already_has_the_new_image_or_was_deleted(
    session: Session, target: FakeRegistry, old: BuiltImage, now: str
) -> None:
    target.untag("copy", "v1")
    if now == "the new image":
        images.load(target, "copy", ONE, "v1")
    publishing.publish(
        session,
        Publication(
            root=put_image(session, ONE), target=reference_at(target, "copy:v1"), replaces=Digest.parse(old.root.digest)
        ),
    )
    assert target.manifest("copy", "v1") == (images.OCI_MANIFEST, ONE.manifests[-1].raw)


@pytest.mark.parametrize("note", ["../../other", "UPPER", "a?b=c&from=d", "\x1b[2J\n", "x" * 10_000, "", "known"])
def test_the_note_of_a_claim_is_a_mount_candidate_only_if_it_is_a_repository(target: FakeRegistry, note: str) -> None:
    """Each process that can write to the content store can write a claim."""
    blob = images.image(870, layers=1, layer_bytes=100_000)
    with open_session(SessionSpec(store=f"memory://{uuid.uuid4().hex}", is_shared=True)) as session:
        put_image(session, blob)
        digest, data = max(blob.blobs.items(), key=lambda one: len(one[1]))
        layer = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(digest), size=len(data))
        with session.store.claims.hold(target.host, layer.digest, pause=session.cancel.pause) as claim:
            claim.note = note
        assert deliver(session, layer, reference_at(target, "copy:v1")).status == "pushed"
        with session.store.claims.hold(target.host, layer.digest, pause=session.cancel.pause) as claim:
            assert claim.note == "copy"
    starts = [one.query for one in target.requests if one.method == "POST"]
    assert any("from=" in one for one in starts) == (note == "known"), starts
    assert target.blob("copy", digest) == data


def test_a_process_mounts_the_upload_of_another_process_without_a_claim(target: FakeRegistry) -> None:
    """A claim would make the processes wait for each other's mounts."""
    blob = images.image(871, layers=1, layer_bytes=100_000)
    digest, data = max(blob.blobs.items(), key=lambda one: len(one[1]))
    layer = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(digest), size=len(data))
    spec = SessionSpec(store=f"memory://{uuid.uuid4().hex}", is_shared=True)
    with open_session(spec) as first, open_session(spec) as second:
        put_image(first, blob)
        assert deliver(first, layer, reference_at(target, "one:v1")).status == "pushed"
        claims = first.store.claims
        path = claims._layout.claim(target.host, layer.digest)
        before = claims._backend.read_versioned(path)

        assert deliver(second, layer, reference_at(target, "two:v1")).status == "mounted"
        assert deliver(second, layer, reference_at(target, "three:v1")).status == "mounted"

        assert claims._backend.read_versioned(path) == before
    assert [one.query for one in target.requests if "from=" in one.query and one.status == 201]
    assert len([one for one in target.requests if one.method == "PUT"]) == 1
