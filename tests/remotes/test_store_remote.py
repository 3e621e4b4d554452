"""The content store as a source and as a target: names with their platforms and referrers, and the safety from gc."""

from datetime import timedelta
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.referrers import cosign_tags
from prefect_dist.storage import ContentStore, gc, open_store
from tests import images
from tests.remotes.archive_remotes import content_of, open_remotes, read_image
from tests.remotes.test_archive_remote_target import push, push_content, set_tag
from tests.storage.archives import content, descriptor, memory_store, put
from tests.storage.conformance import ingest

ONE, ARM = images.image(8400, layers=2), images.image(8401, layers=1, platform="linux/arm64")
INDEX = images.index([ONE, ARM])
BILL = images.artifact(8402, subject=ONE)
SIGNED_BILL = images.artifact(8403, subject=BILL)
SIGNATURE = images.artifact(8404)
SIGNATURE_TAG = cosign_tags(Digest.parse(ONE.root.digest))[0]
NAME = "store:team/app:v1"


@pytest.fixture
def store() -> ContentStore:
    return memory_store()


def fill(store: ContentStore, *built: images.BuiltImage) -> None:
    """Write the content of images to the store, as a run has fetched it."""
    held = {str(info.digest) for info in store.walk()}
    for image in built:
        for digest, raw in content_of(image).items():
            if digest not in held:
                ingest(store, raw)
                held.add(digest)


def test_a_name_is_recorded_with_the_tag_and_read_back(store: ContentStore) -> None:
    fill(store, ONE)
    with open_remotes(store) as remotes:
        target = push(remotes, NAME, ONE)
        assert target.has(descriptor(ONE), tag="v1")
        assert not target.has(descriptor(ONE), tag="v2")
        assert read_image(NAME, remotes=remotes) == content_of(ONE)
    found = store.names.get("team/app:v1")
    assert (found.descriptor, found.platforms, found.referrers) == (descriptor(ONE), None, ())


def test_content_that_no_run_has_fetched_is_verified_and_written(store: ContentStore) -> None:
    with open_remotes(store) as remotes:
        target = push(remotes, NAME, ONE)
        assert content(store) == content_of(ONE)
        blob = Descriptor(media_type=images.OCI_LAYER, digest=Digest.of(b"right"), size=5)
        with pytest.raises(Corrupt):
            target.upload(blob, lambda _offset: iter((b"wrong",)), observer=lambda _offset, _gained: None)
    assert content(store) == content_of(ONE)


def test_a_config_is_no_manifest(store: ContentStore) -> None:
    """A config of Docker has a field `config`, as a manifest does."""
    fill(store, ONE)
    digest = ingest(store, b'{"architecture":"amd64","config":{"Cmd":["sh"]},"os":"linux"}')
    with open_remotes(store) as remotes:
        push(remotes, NAME, ONE)
        for source in (remotes.open_source(Reference.parse(NAME)), remotes.open_origin(Reference.parse(NAME))):
            found = source.resolve(Reference.parse(f"store:team/app@{digest}"))
            assert (found.digest, found.media_type) == (digest, "application/octet-stream")


@pytest.mark.parametrize("position", range(3))
def test_an_incomplete_image_gets_no_name(store: ContentStore, position: int) -> None:
    missing = list(ONE.blobs)[position]
    for digest, raw in content_of(ONE).items():
        if digest != missing:
            ingest(store, raw)
    with open_remotes(store) as remotes, pytest.raises(NotFound, match=missing):
        set_tag(remotes.open_target(Reference.parse(NAME)), ONE, "v1")
    assert list(store.names) == []


def test_a_name_without_a_tag_or_with_a_digest_is_refused(store: ContentStore) -> None:
    with open_remotes(store) as remotes:
        for text in ("store:team/app", f"store:team/app:v1@{ONE.root.digest}"):
            with pytest.raises(InvalidInput, match="expected a name with a tag and without a digest, as in store:"):
                remotes.open_target(Reference.parse(text))


def test_the_origin_of_a_target_has_the_current_names_of_a_repository_and_their_digest_tags(store: ContentStore) -> None:
    push_with_referrers(store, NAME)
    with open_remotes(store) as remotes:
        origin = remotes.open_origin(Reference.parse(NAME))
        assert origin.resolve(Reference.parse(f"store:team/app:{SIGNATURE_TAG}")) == descriptor(SIGNATURE)
        assert [str(one.digest) for one in origin.referrers(descriptor(ONE))] == [BILL.root.digest]
        assert origin.resolve(Reference.parse(f"store:team/app@{BILL.root.digest}")) == descriptor(BILL)
        with pytest.raises(NotFound):
            origin.resolve(Reference.parse("store:team/app:v2"))
        fill(store, ARM)
        push(remotes, "store:team/app:v2", ARM)
        assert origin.resolve(Reference.parse("store:team/app:v2")) == descriptor(ARM)
        assert origin.resolve(Reference.parse(NAME)) == descriptor(ONE)


# Platforms


def test_a_whole_index_is_recorded_for_all_platforms(store: ContentStore) -> None:
    fill(store, INDEX)
    with open_remotes(store) as remotes:
        push(remotes, NAME, INDEX)
    assert store.names.get("team/app:v1").platforms is None


@pytest.mark.parametrize("has_manifest", [False, True])
def test_an_index_is_recorded_for_the_platforms_whose_content_is_complete(store: ContentStore, *, has_manifest: bool) -> None:
    """The other platform may have its manifest in the store, but not its layers."""
    fill(store, ARM)
    ingest(store, INDEX.manifests[-1].raw)
    if has_manifest:
        ingest(store, ONE.manifests[-1].raw)
    with open_remotes(store) as remotes:
        set_tag(remotes.open_target(Reference.parse(NAME)), INDEX, "v1")
    assert store.names.get("team/app:v1").platforms == (Platform.parse("linux/arm64"),)


def test_an_index_without_a_complete_image_gets_no_name(store: ContentStore) -> None:
    ingest(store, INDEX.manifests[-1].raw)
    with open_remotes(store) as remotes, pytest.raises(NotFound, match="the store has no complete image of this index"):
        set_tag(remotes.open_target(Reference.parse(NAME)), INDEX, "v1")


# Referrers


def push_with_referrers(store: ContentStore, *names: str) -> None:
    fill(store, ONE, BILL, SIGNED_BILL, SIGNATURE)
    with open_remotes(store) as remotes:
        for name in names:
            reference = Reference.parse(name)
            target = remotes.open_target(reference)
            for image in (ONE, BILL, SIGNED_BILL, SIGNATURE):
                push_content(target, image)
            set_tag(target, SIGNATURE, SIGNATURE_TAG)
            set_tag(target, ONE, str(reference.tag))


def test_referrers_and_digest_tags_are_recorded_with_the_name(store: ContentStore) -> None:
    push_with_referrers(store, NAME)
    found = {(str(one.descriptor.digest), one.tag) for one in store.names.get("team/app:v1").referrers}
    assert found == {(BILL.root.digest, None), (SIGNED_BILL.root.digest, None), (SIGNATURE.root.digest, SIGNATURE_TAG)}
    assert [name.name for name in store.names] == ["team/app:v1"]


def test_two_tags_of_one_image_both_get_the_referrers(store: ContentStore) -> None:
    push_with_referrers(store, NAME, "store:team/app:latest")
    assert store.names.get("team/app:latest").referrers == store.names.get("team/app:v1").referrers != ()


def test_a_later_run_without_referrers_keeps_the_recorded_referrers(store: ContentStore) -> None:
    push_with_referrers(store, NAME)
    before = store.names.get("team/app:v1")
    with open_remotes(store) as remotes:
        push(remotes, NAME, ONE)
    assert store.names.get("team/app:v1") == before


# Removal and gc


def test_a_tag_is_removed_and_manifests_are_left_to_gc(store: ContentStore) -> None:
    fill(store, ONE)
    with open_remotes(store) as remotes:
        target = push(remotes, NAME, ONE)
        with pytest.raises(Unsupported, match="dist gc removes content without a name"):
            target.delete(descriptor(ONE).digest)
        assert (target.delete_tag("v1"), target.delete_tag("v1")) == (True, True)
    assert list(store.names) == []
    assert content(store) == content_of(ONE)


def test_gc_keeps_content_that_is_pushed_before_its_name_is_recorded(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with open_remotes(store) as remotes:
        target = remotes.open_target(Reference.parse(NAME))
        push_content(target, ONE)
        collect_garbage(store)
        set_tag(target, ONE, "v1")
    collect_garbage(store)
    assert content(store) == content_of(ONE)


def collect_garbage(store: ContentStore) -> None:
    """Remove all content that neither a name nor a lease needs."""
    gc.collect(store, grace=timedelta(0), dry_run=False)


def test_lists_name_the_command_for_names(store: ContentStore) -> None:
    put(store, ONE, "team/app:v1")
    with open_remotes(store) as remotes:
        with pytest.raises(Unsupported, match="cannot list tags; name each image with its tag, as dist names lists it"):
            list(remotes.open_source(Reference.parse(NAME)).tags())
        with pytest.raises(Unsupported, match="cannot list repositories; dist names lists the names in the store"):
            list(remotes.list_repositories("store:team"))
