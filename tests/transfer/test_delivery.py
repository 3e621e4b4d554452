"""Bringing images to several repositories and registries: what is sent, what is mounted, what is kept of what was there."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.errors import Conflict, DistError, NotFound
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.transfer import delivery
from prefect_dist.transfer.delivery import Publication, deliver
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.stats import TransferStats
from tests import images
from tests.fakes.faults import Answer, Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage
from tests.peers.registry import CncfRegistry
from tests.transfer.content import asked, at, put

ONE, OTHER = images.image(800, layers=2), images.image(801, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])


SIZE = sum(map(len, ONE.blobs.values()))
MANIFEST = ONE.root.size


def publish(session: Session, root: Descriptor, target: Reference) -> tuple[int, int]:
    """Publish an image; the bytes that were sent and the blobs that were mounted for it."""
    before = session.stats
    delivery.publish(session, Publication(root=root, target=target))
    return session.stats.sent - before.sent, session.stats.mounted - before.mounted


def test_what_was_delivered_is_not_asked_for_when_the_image_is_published(session: Session, target: FakeRegistry) -> None:
    root = put(session, ONE)
    for digest, data in ONE.blobs.items():
        blob = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(digest), size=len(data))
        deliver(session, blob, at(target, "copy:v1"))
    before = len(target.requests)
    assert publish(session, root, at(target, "copy:v1")) == (MANIFEST, 0)
    assert asked(target)[before:] == ["HEAD /v2/copy/manifests/v1", "PUT /v2/copy/manifests/v1"]


def test_what_one_repository_of_a_registry_has_is_mounted_into_its_others(session: Session, target: FakeRegistry) -> None:
    root = put(session, ONE)
    assert publish(session, root, at(target, "first:v1")) == (SIZE + MANIFEST, 0)
    before = len(target.requests)
    assert publish(session, root, at(target, "second:v1")) == (MANIFEST, len(ONE.blobs))
    assert {one.method for one in target.requests[before:]} == {"HEAD", "POST", "PUT"}
    assert not [one for one in target.requests[before:] if one.method == "PUT" and "/uploads/" in one.path]
    assert all("from=first" in one.query for one in target.requests[before:] if one.method == "POST")


def test_a_mount_that_is_refused_becomes_an_upload(session: Session) -> None:
    root = put(session, ONE)
    with FakeRegistry(mounts="none") as target:
        publish(session, root, at(target, "first:v1"))
        assert publish(session, root, at(target, "second:v1")) == (SIZE + MANIFEST, 0)
        assert target.manifest("second", "v1") == (images.OCI_MANIFEST, ONE.manifests[-1].raw)


def test_manifests_come_after_what_they_name_and_the_tag_last(session: Session, target: FakeRegistry) -> None:
    publish(session, put(session, INDEX), at(target, "copy:v1"))
    manifests = [one for one in asked(target) if "/manifests/" in one]
    *children, checked, tagged = [one.replace("/v2/copy/manifests/", "") for one in manifests]
    assert set(children) == {f"PUT {ONE.root.digest}", f"PUT {OTHER.root.digest}"}
    assert (checked, tagged) == ("HEAD v1", "PUT v1")


def test_a_publication_that_broke_off_goes_on(session: Session, target: FakeRegistry) -> None:
    root = put(session, ONE)
    target.inject(Fault(method="PUT", path=".*/manifests/v1", action=Answer(500, (), b"")))
    with pytest.raises(DistError):
        publish(session, root, at(target, "copy:v1"))
    before = len(target.requests)
    assert publish(session, root, at(target, "copy:v1")) == (MANIFEST, 0)
    assert asked(target)[before:] == ["HEAD /v2/copy/manifests/v1", "PUT /v2/copy/manifests/v1"]


def test_what_the_store_lacks_is_not_published(session: Session, target: FakeRegistry) -> None:
    root = put(session, ONE)
    session.store.delete(Digest.parse(next(iter(ONE.blobs))))
    with pytest.raises(NotFound, match=f"{target.host}/copy:v1: 1 descriptor missing"):
        publish(session, root, at(target, "copy:v1"))
    assert target.requests == []


def test_content_that_several_images_of_one_registry_want_at_once_is_sent_once(session: Session, target: FakeRegistry) -> None:
    put(session, ONE)
    blobs = [Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(d), size=len(b)) for d, b in ONE.blobs.items()]
    places = [at(target, f"copy{number}:v1") for number in range(8)]
    with ThreadPoolExecutor(8) as executor:
        for blob in blobs:
            list(executor.map(lambda place, blob=blob: deliver(session, blob, place), places))
    assert session.stats == TransferStats(sent=SIZE, mounted=7 * len(blobs), mounted_bytes=7 * SIZE)


SOME = (Platform.parse("linux/arm64"),)


def test_an_index_of_some_platforms_is_published_as_it_is(session: Session) -> None:
    root = put(session, INDEX)
    with FakeRegistry(sparse=True) as target:
        delivery.publish(session, Publication(root=root, target=at(target, "copy:v1"), platforms=SOME))
        assert target.manifest("copy", "v1") == (images.OCI_INDEX, INDEX.manifests[-1].raw)
        assert target.manifest("copy", OTHER.root.digest)
        assert target.manifest("copy", ONE.root.digest) is None


def test_a_registry_that_takes_whole_indexes_alone_is_told_of_with_what_to_do(session: Session, target: FakeRegistry) -> None:
    root = put(session, INDEX)
    with pytest.raises(NotFound, match=r"MANIFEST_BLOB_UNKNOWN.*; this registry accepts no sparse index; .*rewriteIndex"):
        delivery.publish(session, Publication(root=root, target=at(target, "copy:v1"), platforms=SOME))
    assert target.manifest("copy", "v1") is None


def test_an_index_that_is_written_anew_lists_what_is_there_alone(session: Session, target: FakeRegistry) -> None:
    root = put(session, INDEX)
    delivery.publish(session, Publication(root=root, target=at(target, "copy:v1"), platforms=SOME, rewritten=True))
    expected = filter_index(root, SOME, session.store.manifest)
    assert target.manifest("copy", "v1") == (images.OCI_INDEX, expected.root.data)
    assert target.manifest("copy", OTHER.root.digest)
    assert target.manifest("copy", ONE.root.digest) is None


@pytest.fixture
def old(target: FakeRegistry) -> BuiltImage:
    """What stands at the tag that is to be overwritten; none of it is in the store."""
    image = images.index([images.image(810), images.image(811, platform="linux/arm64/v8")])
    images.load(target, "copy", image, "v1")
    return image


def overwrite(session: Session, target: FakeRegistry, backup: Reference) -> None:
    there = target.manifest("copy", "v1")
    replaces = Digest.of(there[1]) if there else None
    delivery.publish(
        session, Publication(root=put(session, ONE), target=at(target, "copy:v1"), replaces=replaces, backup=backup)
    )


def test_what_is_overwritten_is_kept_under_another_tag_before(session: Session, target: FakeRegistry, old: BuiltImage) -> None:
    overwrite(session, target, at(target, "copy:v1-old"))
    assert target.manifest("copy", "v1-old") == (images.OCI_INDEX, old.manifests[-1].raw)
    assert target.manifest("copy", "v1") == (images.OCI_MANIFEST, ONE.manifests[-1].raw)
    puts = [one.path for one in target.requests if one.method == "PUT" and "/manifests/" in one.path]
    assert puts == ["/v2/copy/manifests/v1-old", "/v2/copy/manifests/v1"]
    blobs = [one.path for one in target.requests if one.method == "GET"]
    assert blobs == [f"/v2/copy/manifests/{old.root.digest}"]  # its children are there


def test_what_is_kept_in_another_repository_is_kept_whole(session: Session, target: FakeRegistry, old: BuiltImage) -> None:
    with FakeRegistry() as other:
        overwrite(session, target, at(other, "backups/copy:v1"))
        assert other.manifest("backups/copy", "v1") == (images.OCI_INDEX, old.manifests[-1].raw)
        assert all(other.blob("backups/copy", digest) == data for digest, data in old.blobs.items())


def test_of_an_index_of_which_a_target_has_some_platforms_these_are_kept(session: Session) -> None:
    missing = images.image(812, platform="linux/s390x")
    here = images.image(813)
    sparse = images.index([here, missing])
    with FakeRegistry(sparse=True) as target, FakeRegistry(sparse=True) as other:
        images.load(target, "copy", here)
        target.put_manifest("copy", sparse.manifests[-1].raw, images.OCI_INDEX, tag="v1")
        overwrite(session, target, at(other, "backups/copy:v1"))
        assert other.manifest("backups/copy", "v1") == (images.OCI_INDEX, sparse.manifests[-1].raw)
        assert other.manifest("backups/copy", here.root.digest)
        assert other.manifest("backups/copy", missing.root.digest) is None


def test_nothing_is_overwritten_that_could_not_be_kept(session: Session, target: FakeRegistry, old: BuiltImage) -> None:
    target.inject(Fault(method="PUT", path=".*/manifests/v1-old", action=Answer(403, (), b"")))
    with pytest.raises(DistError, match="v1-old"):
        overwrite(session, target, at(target, "copy:v1-old"))
    assert target.manifest("copy", "v1") == (images.OCI_INDEX, old.manifests[-1].raw)


@pytest.mark.parametrize("there", ["nothing", "the same"])
def test_where_nothing_is_overwritten_nothing_is_kept(session: Session, target: FakeRegistry, there: str) -> None:
    if there == "the same":
        images.load(target, "copy", ONE, "v1")
    overwrite(session, target, at(target, "copy:v1-old"))
    assert target.manifest("copy", "v1-old") is None


def test_what_was_kept_before_is_not_sent_again(session: Session, target: FakeRegistry, old: BuiltImage) -> None:
    target.put_manifest("copy", old.manifests[-1].raw, images.OCI_INDEX, tag="v1-old")
    overwrite(session, target, at(target, "copy:v1-old"))
    assert "PUT /v2/copy/manifests/v1-old" not in asked(target)


def test_images_that_share_layers_come_to_one_repository_of_the_cncf_registry(session: Session, registry: CncfRegistry) -> None:
    # which refuses a manifest while a blob that it names is mounted once more
    root = put(session, ONE)
    publish(session, root, Reference.parse(f"{registry.host}/delivery/first:v1"))
    places = [Reference.parse(f"{registry.host}/delivery/r{number // 8}:v{number}") for number in range(64)]
    with ThreadPoolExecutor(16) as executor:
        list(executor.map(lambda place: publish(session, root, place), places))
    assert session.stats == TransferStats(sent=SIZE + 65 * MANIFEST, mounted=8 * len(ONE.blobs), mounted_bytes=8 * SIZE)


def test_a_failure_lets_who_waits_try(session: Session, target: FakeRegistry) -> None:
    root = put(session, ONE)
    target.inject(Fault(method="POST", path=".*/uploads/", action=Answer(500, (), b"")))
    places = [at(target, f"copy:v{number}") for number in range(4)]

    def published(place: Reference) -> bool:
        try:
            publish(session, root, place)
        except DistError:
            return False
        return True

    with ThreadPoolExecutor(len(places)) as executor:
        assert sorted(executor.map(published, places)) == [False, True, True, True]


def test_what_the_same_registry_has_is_mounted_from_where_it_was_read(session: Session, target: FakeRegistry) -> None:
    put(session, ONE)
    images.load(target, "source", ONE)
    for digest, data in ONE.blobs.items():
        blob = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(digest), size=len(data))
        deliver(session, blob, at(target, "copy:v1"), origin=at(target, "source:v1"))
    assert session.stats == TransferStats(mounted=len(ONE.blobs), mounted_bytes=SIZE)
    assert {one.query.split("from=")[1] for one in target.requests if one.method == "POST"} == {"source"}


# The tag may have been moved since the publication was planned.

NEWER = images.image(815, layers=1)


@pytest.mark.parametrize("planned", ["an image", "no tag"])
@pytest.mark.parametrize("backup", [False, True])
def test_a_tag_that_was_moved_since_the_plan_is_not_overwritten(
    session: Session, target: FakeRegistry, old: BuiltImage, planned: str, *, backup: bool
) -> None:
    replaces = Digest.parse(old.root.digest) if planned == "an image" else None
    images.load(target, "copy", NEWER, "v1")
    wanted = Publication(
        root=put(session, ONE),
        target=at(target, "copy:v1"),
        replaces=replaces,
        backup=at(target, "copy:v1-old") if backup else None,
    )
    moved = (
        f"{target.host}/copy:v1: target tag moved from {replaces or 'no manifest'} to {NEWER.root.digest} since it was planned"
    )
    with pytest.raises(Conflict, match=f"^{moved}; run again$"):
        delivery.publish(session, wanted)
    assert target.manifest("copy", "v1") == (images.OCI_MANIFEST, NEWER.manifests[-1].raw)
    assert target.manifest("copy", "v1-old") is None
    assert not [one for one in asked(target) if one.startswith("PUT") and "/manifests/v1" in one]


def test_a_tag_that_is_moved_while_content_is_pushed_is_not_overwritten(
    session: Session, target: FakeRegistry, old: BuiltImage
) -> None:
    target.inject(Fault(method="POST", path=".*/uploads/", action=Call(lambda: images.load(target, "copy", NEWER, "v1"))))
    with pytest.raises(Conflict, match=f"from {old.root.digest} to {NEWER.root.digest} "):
        delivery.publish(
            session, Publication(root=put(session, ONE), target=at(target, "copy:v1"), replaces=Digest.parse(old.root.digest))
        )
    assert target.manifest("copy", "v1") == (images.OCI_MANIFEST, NEWER.manifests[-1].raw)


@pytest.mark.parametrize("now", ["the new image", "nothing"])
def test_a_tag_that_has_the_new_image_already_or_is_gone_is_set(
    session: Session, target: FakeRegistry, old: BuiltImage, now: str
) -> None:
    target.untag("copy", "v1")
    if now == "the new image":
        images.load(target, "copy", ONE, "v1")
    delivery.publish(
        session, Publication(root=put(session, ONE), target=at(target, "copy:v1"), replaces=Digest.parse(old.root.digest))
    )
    assert target.manifest("copy", "v1") == (images.OCI_MANIFEST, ONE.manifests[-1].raw)
