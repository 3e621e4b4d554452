"""The content store as the only source of an offline run: images by their store names, and their recorded referrers."""

from dataclasses import replace

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.errors import NotFound, Unsupported
from prefect_dist.ocispec.referrers import Referrer, cosign_tags
from prefect_dist.remotes import Source
from prefect_dist.remotes.store_source import StoredSource
from prefect_dist.transfer.session import Session
from tests import images
from tests.transfer.content import put_image, root_of

ONE, OTHER = images.image(1130, layers=1), images.image(1131, layers=1, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
BILL, TYPED, SIGNATURE = images.artifact(1132, subject=ONE), images.artifact(1133, subject=INDEX), images.artifact(1134)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]
NAME = Reference.parse("registry.example/app:v1")


@pytest.fixture
def stored_source(session: Session) -> Source:
    bill, typed, signature = (put_image(session, built) for built in (BILL, TYPED, SIGNATURE))
    bill = replace(bill, artifact_type=images.ARTIFACT)  # as in a list of referrers of a registry
    referrers = (Referrer(bill), Referrer(typed), Referrer(signature, SIGNATURE_TAG))
    session.store.names.put(str(NAME), put_image(session, INDEX), source=NAME.locator, referrers=referrers)
    return StoredSource(session.store, str(NAME))


def digests(found: list[Descriptor]) -> list[str]:
    return [str(one.digest) for one in found]


def test_a_reference_resolves_to_the_root_recorded_under_its_store_name(session: Session, stored_source: Source) -> None:
    assert stored_source.resolve(NAME) == root_of(INDEX)
    message = r"registry\.example/app:v2: the store has no image of this name; `dist names` lists the names"
    other = Reference.parse("registry.example/app:v2")
    with pytest.raises(NotFound, match=message):
        StoredSource(session.store, str(other)).resolve(other)


def test_content_and_tags_that_the_store_lacks_are_not_found_offline(stored_source: Source) -> None:
    missing = root_of(images.image(1139))
    with pytest.raises(NotFound, match=f"{missing.digest}: not in the store; fetch the image first"):
        list(stored_source.fetch(missing))
    with pytest.raises(Unsupported, match="the remote store: cannot list tags; name each image with its tag"):
        list(stored_source.tags())


def test_the_error_for_missing_content_names_the_platforms_in_the_store(session: Session) -> None:
    platforms = (Platform.parse("linux/amd64"),)
    session.store.names.put(str(NAME), put_image(session, INDEX), source=NAME.locator, platforms=platforms)
    with pytest.raises(NotFound, match=f"not in the store; of {NAME} the store has only linux/amd64"):
        list(StoredSource(session.store, str(NAME)).fetch(root_of(images.image(1139))))


def test_recorded_referrers_are_listed_at_their_subjects(stored_source: Source) -> None:
    assert digests(list(stored_source.referrers(root_of(ONE)))) == [BILL.root.digest]
    assert digests(list(stored_source.referrers(root_of(INDEX)))) == [TYPED.root.digest]
    assert list(stored_source.referrers(root_of(OTHER))) == []


@pytest.mark.parametrize(("wanted", "found"), [(images.ARTIFACT, [BILL.root.digest]), ("application/none", [])])
def test_the_list_of_referrers_is_filtered_by_artifact_type(stored_source: Source, wanted: str, found: list[str]) -> None:
    assert digests(list(stored_source.referrers(root_of(ONE), artifact_type=wanted))) == found


def test_a_recorded_signature_is_found_by_its_digest_tag(stored_source: Source) -> None:
    assert [(tag, str(one.digest)) for tag, one in stored_source.signatures(root_of(INDEX))] == [
        (SIGNATURE_TAG, SIGNATURE.root.digest)
    ]
    assert list(stored_source.signatures(root_of(ONE))) == []
