"""Bringing images to several repositories and registries: what is sent, what is mounted, what is asked."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.progress import LogListener
from ocispec import Descriptor, Digest, Reference
from ocispec.errors import DistError, NotFound
from tasks.session import Session, SessionSpec, open_session
from tasks.survey import Ask
from tests import images
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage

ONE, OTHER = images.image(800, layers=2), images.image(801, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    spec = SessionSpec(store=str(tmp_path / "store"))
    with open_session(spec, observer=LogListener(logging.getLogger("test"))) as session:
        yield session


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        for image, tag in ((INDEX, "all"), (ONE, "one")):
            images.load(source, "app", image, tag)
        yield source


@pytest.fixture
def target() -> Iterator[FakeRegistry]:
    with FakeRegistry() as target:
        yield target


def put(session: Session, image: BuiltImage) -> Descriptor:
    for digest, data in (*image.blobs.items(), *((m.digest, m.raw) for m in image.manifests)):
        with session.store.writer(digest, expected=Digest.parse(digest), total=len(data)) as writer:
            writer.write(data)
            writer.commit()
    root = image.root
    return Descriptor(media_type=root.media_type, digest=Digest.parse(root.digest), size=root.size)


def at(registry: FakeRegistry, named: str) -> Reference:
    return Reference.parse(f"{registry.host}/{named}")


def publish(session: Session, root: Descriptor, target: Reference) -> list[str]:
    return [receipt.status for receipt in session.publish(root, target, platforms=None, referrers=())]


def asked(registry: FakeRegistry) -> list[str]:
    return [f"{one.method} {one.path}" for one in registry.requests]


def test_what_was_delivered_is_not_asked_for_when_the_image_is_published(session: Session, target: FakeRegistry) -> None:
    root = put(session, ONE)
    for digest, data in ONE.blobs.items():
        blob = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(digest), size=len(data))
        session.deliver(blob, at(target, "copy:v1"))
    before = len(target.requests)
    assert publish(session, root, at(target, "copy:v1")) == ["pushed"]
    assert asked(target)[before:] == ["PUT /v2/copy/manifests/v1"]


def test_what_one_repository_of_a_registry_has_is_mounted_into_its_others(session: Session, target: FakeRegistry) -> None:
    root = put(session, ONE)
    assert publish(session, root, at(target, "first:v1")) == ["pushed"] * 4
    before = len(target.requests)
    assert publish(session, root, at(target, "second:v1")) == ["mounted"] * 3 + ["pushed"]
    assert {one.method for one in target.requests[before:]} == {"HEAD", "POST", "PUT"}
    assert not [one for one in target.requests[before:] if one.method == "PUT" and "/uploads/" in one.path]
    assert all("from=first" in one.query for one in target.requests[before:] if one.method == "POST")


def test_a_mount_that_is_refused_becomes_an_upload(session: Session) -> None:
    root = put(session, ONE)
    with FakeRegistry(mounts="none") as target:
        publish(session, root, at(target, "first:v1"))
        assert publish(session, root, at(target, "second:v1")) == ["pushed"] * 4
        assert target.manifest("second", "v1") == (images.OCI_MANIFEST, ONE.manifests[-1].raw)


def test_manifests_come_after_what_they_name_and_the_tag_last(session: Session, target: FakeRegistry) -> None:
    publish(session, put(session, INDEX), at(target, "copy:v1"))
    manifests = [one.path.rpartition("/")[2] for one in target.requests if "/manifests/" in one.path]
    assert manifests[-1] == "v1"
    assert set(manifests[:-1]) == {ONE.root.digest, OTHER.root.digest}


def test_a_publication_that_broke_off_goes_on(session: Session, target: FakeRegistry) -> None:
    root = put(session, ONE)
    target.inject(Fault(method="PUT", path=".*/manifests/v1", action=Answer(500, (), b"")))
    with pytest.raises(DistError):
        publish(session, root, at(target, "copy:v1"))
    before = len(target.requests)
    assert publish(session, root, at(target, "copy:v1")) == ["pushed"]
    assert len(target.requests) == before + 1


def test_what_the_store_lacks_is_not_published(session: Session, target: FakeRegistry) -> None:
    root = put(session, ONE)
    session.store.delete(Digest.parse(next(iter(ONE.blobs))))
    with pytest.raises(NotFound, match=f"{target.host}/copy:v1: 1 descriptor missing"):
        publish(session, root, at(target, "copy:v1"))
    assert target.requests == []


def test_a_survey_asks_once_at_each_place(session: Session, source: FakeRegistry, target: FakeRegistry) -> None:
    images.load(target, "copy", INDEX, "all")
    ask = Ask(source=at(source, "app:all"), targets=(at(target, "copy:all"),))
    (found,) = session.find([ask], keep=True, workers=2)
    assert not found.errors
    assert found.content == ()
    assert (asked(source), asked(target)) == (["HEAD /v2/app/manifests/all"], ["HEAD /v2/copy/manifests/all"])
    assert session.find([ask], keep=True, workers=2) == [found]
    assert len(source.requests) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_a_survey_reads_the_manifests_of_what_has_to_be_brought(
    session: Session, source: FakeRegistry, target: FakeRegistry, *, keep: bool
) -> None:
    images.load(target, "copy", ONE, "all")
    targets = at(target, "copy:all"), at(target, "other:all")
    (found,) = session.find([Ask(source=at(source, "app:all"), targets=targets)], keep=keep, workers=2)
    standing = [there and str(there.digest) if not isinstance(there, DistError) else there for there in found.standing]
    assert standing == [ONE.root.digest, None]
    assert not isinstance(found.content, DistError)
    assert {str(descriptor.digest) for descriptor in found.content} == set(INDEX.descriptors)
    manifests = {ONE.root.digest, OTHER.root.digest, INDEX.root.digest}
    assert {one.path.rpartition("/")[2] for one in source.requests if one.method == "GET"} == manifests
    assert {str(info.digest) for info in session.store.walk()} == (manifests if keep else set())


def test_what_cannot_be_told_is_part_of_what_was_found(session: Session, source: FakeRegistry, target: FakeRegistry) -> None:
    target.inject(Fault(method="HEAD", path="/v2/shut/.*", action=Answer(401, (), b"")))
    asks = [
        Ask(source=at(source, "app:none"), targets=(at(target, "copy:none"),)),
        Ask(source=at(source, "app:one"), targets=(at(target, "shut:one"), at(target, "copy:one"))),
    ]
    missing, shut = session.find(asks, keep=True, workers=2)
    assert str(missing.errors[0]).startswith(f"{source.host}/app:none: ")
    (error,) = shut.errors
    assert str(error).startswith(f"{target.host}/shut:one: ")
    assert shut.standing[1] is None
    assert {str(descriptor.digest) for descriptor in shut.content} == set(ONE.descriptors)  # type: ignore[union-attr] # no error
