"""Where the content of a damaged target is looked for: in the store, or else at its source by digest."""

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
from tests.transfer.content import asked, at, put, root_of

ONE, OTHER, LATER = images.image(1120), images.image(1121, platform="linux/arm64/v8"), images.image(1122)
INDEX = images.index([ONE, OTHER])
WANTED = (Platform.parse("linux/arm64"),)
TARGET = Reference.parse("registry.example/copy:v1")


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        yield source


def expected(digest: str, platforms: tuple[Platform, ...] | None = None) -> Expected:
    return Expected(target=TARGET, digest=Digest.parse(digest), platforms=platforms)


def remember(session: Session, origin: Reference, built: BuiltImage) -> Descriptor:
    root = put(session, built)
    session.store.names.put(str(origin), root, source=origin.locator)
    return root


def made_of(built: BuiltImage) -> str:
    """The digest of the index that is made of another one for what is wanted."""
    documents = {Digest.parse(one.digest): one.raw for one in built.manifests}
    return str(filter_index(root_of(built), WANTED, lambda descriptor: documents[descriptor.digest]).root.digest)


def test_what_the_store_has_under_its_name_is_asked_of_nobody(session: Session, source: FakeRegistry) -> None:
    root = remember(session, at(source, "app:v1"), INDEX)
    assert locate(session, at(source, "app:v1"), expected(INDEX.root.digest), rewritten=False) == Located(root, ())
    assert asked(source) == []


@pytest.mark.parametrize("named", [None, LATER])
def test_what_the_store_has_not_or_no_longer_is_asked_for_by_digest(
    session: Session, source: FakeRegistry, named: BuiltImage | None
) -> None:
    if named is not None:
        remember(session, at(source, "app:v1"), named)
    images.load(source, "app", INDEX)
    images.load(source, "app", LATER, "v1")
    found = locate(session, at(source, "app:v1"), expected(INDEX.root.digest), rewritten=False).root
    assert found.key == root_of(INDEX).key
    assert asked(source) == [f"HEAD /v2/app/manifests/{INDEX.root.digest}"]


def test_what_neither_has_is_told_by_its_digest(session: Session, source: FakeRegistry) -> None:
    images.load(source, "app", LATER, "v1")
    with pytest.raises(NotFound) as told:
        locate(session, at(source, "app:v1"), expected(INDEX.root.digest), rewritten=False)
    assert str(told.value).startswith(f"{source.host}/app@{INDEX.root.digest}: ")


def test_a_source_that_is_gone_is_told(session: Session) -> None:
    with FakeRegistry() as gone:
        pass
    with pytest.raises(DistError, match=gone.host):
        locate(session, at(gone, "app:v1"), expected(INDEX.root.digest), rewritten=False)


def test_what_an_index_was_made_of_is_taken_from_the_store(session: Session, source: FakeRegistry) -> None:
    root = remember(session, at(source, "app:v1"), INDEX)
    assert locate(session, at(source, "app:v1"), expected(made_of(INDEX), WANTED), rewritten=True) == Located(root, ())
    assert asked(source) == []


@pytest.mark.parametrize("named", [None, LATER])
def test_or_from_the_source_as_long_as_its_tag_has_not_moved(
    session: Session, source: FakeRegistry, named: BuiltImage | None
) -> None:
    if named is not None:
        remember(session, at(source, "app:v1"), named)
    images.load(source, "app", INDEX, "v1")
    found = locate(session, at(source, "app:v1"), expected(made_of(INDEX), WANTED), rewritten=True).root
    assert found.key == root_of(INDEX).key
    assert asked(source) == ["HEAD /v2/app/manifests/v1", f"GET /v2/app/manifests/{INDEX.root.digest}"]


def test_what_an_index_was_made_of_cannot_be_had_once_the_tag_has_moved(session: Session, source: FakeRegistry) -> None:
    images.load(source, "app", images.index([ONE, images.image(1123, platform="linux/arm64/v8")]), "v1")
    with pytest.raises(
        NotFound, match=f"{source.host}/app:v1: the tag moved since {TARGET} was mirrored from it; mirror the image again"
    ):
        locate(session, at(source, "app:v1"), expected(made_of(INDEX), WANTED), rewritten=True)


def test_nor_once_it_has_nothing_for_these_platforms(session: Session, source: FakeRegistry) -> None:
    images.load(source, "app", images.index([ONE, LATER]), "v1")
    with pytest.raises(NotFound, match="the tag moved since"):
        locate(session, at(source, "app:v1"), expected(made_of(INDEX), WANTED), rewritten=True)


def test_an_image_for_one_platform_was_not_made_of_an_index(session: Session, source: FakeRegistry) -> None:
    root = remember(session, at(source, "app:v1"), ONE)
    assert locate(session, at(source, "app:v1"), expected(ONE.root.digest, WANTED), rewritten=True) == Located(root, ())
    assert asked(source) == []


def test_why_a_source_cannot_be_read_is_told_as_it_is(session: Session, source: FakeRegistry) -> None:
    images.load(source, "app", INDEX, "v1")
    source.inject(Fault(path=f".*/manifests/{INDEX.root.digest}", nth=None, action=Flip(3)))
    with pytest.raises(Corrupt, match=INDEX.root.digest):
        locate(session, at(source, "app:v1"), expected(made_of(INDEX), WANTED), rewritten=True)


def test_what_should_be_about_an_image_is_found_likewise_and_may_be_had_nowhere(session: Session, source: FakeRegistry) -> None:
    bill, signature, lost = images.artifact(1124, subject=ONE), images.artifact(1125), images.artifact(1126)
    kept = put(session, bill)
    remember(session, at(source, "app:v1"), ONE)
    session.store.names.put(str(at(source, "app:v1")), root_of(ONE), source="", referrers=(Referrer(kept),))
    images.load(source, "app", signature)
    tags = ((bill, None), (signature, "sha256-1.sig"), (lost, None))
    about = {Digest.parse(built.root.digest): tag for built, tag in tags}
    wanted = Expected(target=TARGET, digest=Digest.parse(ONE.root.digest), referrers=about)

    found = locate(session, at(source, "app:v1"), wanted, rewritten=False).referrers

    assert found == (Referrer(kept), Referrer(root_of(signature), "sha256-1.sig"))
    assert {one.rpartition("/")[2] for one in asked(source)} == {signature.root.digest, lost.root.digest}
