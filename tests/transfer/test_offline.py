"""The store as the one source of images: names, and what came along with them; nothing else is there."""

from dataclasses import replace

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.ocispec.referrers import Referrer, cosign_tags
from prefect_dist.remotes import Source
from prefect_dist.transfer.offline import StoredSource
from prefect_dist.transfer.session import Session
from tests import images
from tests.transfer.content import put, root_of

ONE, OTHER = images.image(1130, layers=1), images.image(1131, layers=1, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
BILL, TYPED, SIGNATURE = images.artifact(1132, subject=ONE), images.artifact(1133, subject=INDEX), images.artifact(1134)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]
NAME = Reference.parse("registry.example/app:v1")


@pytest.fixture
def stored(session: Session) -> Source:
    bill, typed, signature = (put(session, built) for built in (BILL, TYPED, SIGNATURE))
    bill = replace(bill, artifact_type=images.ARTIFACT)  # as registries list it
    along = (Referrer(bill), Referrer(typed), Referrer(signature, SIGNATURE_TAG))
    session.store.names.put(str(NAME), put(session, INDEX), source=NAME.locator, referrers=along)
    return StoredSource(session.store, NAME)


def digests(found: list[Descriptor]) -> list[str]:
    return [str(one.digest) for one in found]


def test_a_name_stands_for_what_was_recorded(stored: Source) -> None:
    assert stored.resolve(NAME) == root_of(INDEX)
    told = r"registry\.example/app:v2: the store has no image of this name, .*; `dist names` lists the names"
    with pytest.raises(NotFound, match=told):
        stored.resolve(Reference.parse("registry.example/app:v2"))


def test_there_is_nothing_else_to_ask(stored: Source) -> None:
    missing = root_of(images.image(1139))
    with pytest.raises(NotFound, match=f"{missing.digest}: not in the store, and the run is offline; fetch the image first"):
        list(stored.fetch(missing))
    with pytest.raises(NotFound, match="name each image with its tag"):
        list(stored.tags())


def test_of_an_index_for_some_platforms_it_is_told_which_are_there(session: Session) -> None:
    platforms = (Platform.parse("linux/amd64"),)
    session.store.names.put(str(NAME), put(session, INDEX), source=NAME.locator, platforms=platforms)
    with pytest.raises(NotFound, match=f"the run is offline; of {NAME} the store has only linux/amd64"):
        list(StoredSource(session.store, NAME).fetch(root_of(images.image(1139))))


def test_what_came_along_is_listed_at_what_it_is_about(stored: Source) -> None:
    assert digests(list(stored.referrers(root_of(ONE)))) == [BILL.root.digest]
    assert digests(list(stored.referrers(root_of(INDEX)))) == [TYPED.root.digest]
    assert list(stored.referrers(root_of(OTHER))) == []


@pytest.mark.parametrize(("wanted", "found"), [(images.ARTIFACT, [BILL.root.digest]), ("application/none", [])])
def test_of_that_the_wanted_type_alone(stored: Source, wanted: str, found: list[str]) -> None:
    assert digests(list(stored.referrers(root_of(ONE), artifact_type=wanted))) == found


def test_what_has_a_tag_of_cosigns_is_found_by_it(stored: Source) -> None:
    assert [(tag, str(one.digest)) for tag, one in stored.signatures(root_of(INDEX))] == [
        (SIGNATURE_TAG, SIGNATURE.root.digest)
    ]
    assert list(stored.signatures(root_of(ONE))) == []
