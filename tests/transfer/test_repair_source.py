"""The source of a repair: the content store, or the source of the mirror by digest."""

from collections.abc import Iterator

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.errors import Corrupt, DistError, NotFound
from prefect_dist.ocispec.index_filter import filter_index
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.transfer.audit import Expected
from prefect_dist.transfer.repair_source import Located, locate
from prefect_dist.transfer.session import Session
from tests import images
from tests.fakes.faults import Fault, Flip
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage
from tests.transfer.content import list_requests, put_image, reference_at, root_of

ONE, OTHER, LATER = images.image(1120), images.image(1121, platform="linux/arm64/v8"), images.image(1122)
INDEX = images.index([ONE, OTHER])
WANTED = (Platform.parse("linux/arm64"),)
TARGET = Reference.parse("registry.example/copy:v1")


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        yield source


def expect(digest: str, platforms: tuple[Platform, ...] | None = None) -> Expected:
    return Expected(target=TARGET, digest=Digest.parse(digest), platforms=platforms)


def record(session: Session, origin: Reference, built: BuiltImage) -> Descriptor:
    root = put_image(session, built)
    session.store.names.put(str(origin), root, source=origin.locator)
    return root


def rewritten_digest(built: BuiltImage) -> str:
    """Return the digest of the index that is rewritten for the selected platforms."""
    documents = {Digest.parse(one.digest): one.raw for one in built.manifests}
    return str(filter_index(root_of(built), WANTED, lambda descriptor: documents[descriptor.digest]).root.digest)


def test_an_image_under_its_store_name_needs_no_request(session: Session, source: FakeRegistry) -> None:
    root = record(session, reference_at(source, "app:v1"), INDEX)
    assert locate(session, reference_at(source, "app:v1"), expect(INDEX.root.digest), rewritten=False) == Located(root, ())
    assert list_requests(source) == []


@pytest.mark.parametrize("named", [None, LATER])
def test_an_image_that_the_store_lacks_is_requested_by_digest(
    session: Session, source: FakeRegistry, named: BuiltImage | None
) -> None:
    if named is not None:
        record(session, reference_at(source, "app:v1"), named)
    images.load(source, "app", INDEX)
    images.load(source, "app", LATER, "v1")
    found = locate(session, reference_at(source, "app:v1"), expect(INDEX.root.digest), rewritten=False).root
    assert found.key == root_of(INDEX).key
    assert list_requests(source) == [f"HEAD /v2/app/manifests/{INDEX.root.digest}"]


def test_the_error_for_a_lost_image_names_its_digest(session: Session, source: FakeRegistry) -> None:
    images.load(source, "app", LATER, "v1")
    with pytest.raises(NotFound) as raised:
        locate(session, reference_at(source, "app:v1"), expect(INDEX.root.digest), rewritten=False)
    assert str(raised.value).startswith(f"{source.host}/app@{INDEX.root.digest}: ")


def test_the_error_for_an_unreachable_source_names_the_registry(session: Session) -> None:
    with FakeRegistry() as gone:
        pass
    with pytest.raises(DistError, match=gone.host):
        locate(session, reference_at(gone, "app:v1"), expect(INDEX.root.digest), rewritten=False)


def test_the_original_of_a_rewritten_index_comes_from_the_store(session: Session, source: FakeRegistry) -> None:
    root = record(session, reference_at(source, "app:v1"), INDEX)
    assert locate(session, reference_at(source, "app:v1"), expect(rewritten_digest(INDEX), WANTED), rewritten=True) == Located(
        root, ()
    )
    assert list_requests(source) == []


@pytest.mark.parametrize("named", [None, LATER])
def test_the_original_of_a_rewritten_index_comes_from_the_unmoved_source_tag(
    session: Session, source: FakeRegistry, named: BuiltImage | None
) -> None:
    if named is not None:
        record(session, reference_at(source, "app:v1"), named)
    images.load(source, "app", INDEX, "v1")
    found = locate(session, reference_at(source, "app:v1"), expect(rewritten_digest(INDEX), WANTED), rewritten=True).root
    assert found.key == root_of(INDEX).key
    assert list_requests(source) == ["HEAD /v2/app/manifests/v1", f"GET /v2/app/manifests/{INDEX.root.digest}"]


def test_the_original_of_a_rewritten_index_is_not_found_after_the_tag_moved(session: Session, source: FakeRegistry) -> None:
    images.load(source, "app", images.index([ONE, images.image(1123, platform="linux/arm64/v8")]), "v1")
    with pytest.raises(
        NotFound, match=f"{source.host}/app:v1: the tag moved since {TARGET} was mirrored from it; mirror the image again"
    ):
        locate(session, reference_at(source, "app:v1"), expect(rewritten_digest(INDEX), WANTED), rewritten=True)


def test_the_original_of_a_rewritten_index_is_not_found_if_the_tag_lacks_the_platforms(
    session: Session, source: FakeRegistry
) -> None:
    images.load(source, "app", images.index([ONE, LATER]), "v1")
    with pytest.raises(NotFound, match="the tag moved since"):
        locate(session, reference_at(source, "app:v1"), expect(rewritten_digest(INDEX), WANTED), rewritten=True)


def test_an_image_without_an_index_is_its_own_original(session: Session, source: FakeRegistry) -> None:
    root = record(session, reference_at(source, "app:v1"), ONE)
    assert locate(session, reference_at(source, "app:v1"), expect(ONE.root.digest, WANTED), rewritten=True) == Located(root, ())
    assert list_requests(source) == []


def test_corrupt_content_at_the_source_raises_corrupt(session: Session, source: FakeRegistry) -> None:
    images.load(source, "app", INDEX, "v1")
    source.inject(Fault(path=f".*/manifests/{INDEX.root.digest}", nth=None, action=Flip(3)))
    with pytest.raises(Corrupt, match=INDEX.root.digest):
        locate(session, reference_at(source, "app:v1"), expect(rewritten_digest(INDEX), WANTED), rewritten=True)


def test_referrers_come_from_the_store_or_the_source_and_lost_referrers_are_left_out(
    session: Session, source: FakeRegistry
) -> None:
    bill, signature, lost = images.artifact(1124, subject=ONE), images.artifact(1125), images.artifact(1126)
    kept = put_image(session, bill)
    record(session, reference_at(source, "app:v1"), ONE)
    session.store.names.put(str(reference_at(source, "app:v1")), root_of(ONE), source="", referrers=(Referrer(kept),))
    images.load(source, "app", signature)
    tags = ((bill, None), (signature, "sha256-1.sig"), (lost, None))
    referrers = {Digest.parse(built.root.digest): tag for built, tag in tags}
    wanted = Expected(target=TARGET, digest=Digest.parse(ONE.root.digest), referrers=referrers)

    found = locate(session, reference_at(source, "app:v1"), wanted, rewritten=False).referrers

    assert found == (Referrer(kept), Referrer(root_of(signature), "sha256-1.sig"))
    assert {one.rpartition("/")[2] for one in list_requests(source)} == {signature.root.digest, lost.root.digest}
