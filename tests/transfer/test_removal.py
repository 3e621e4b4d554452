"""The removal of tags at a registry that deletes only whole manifests."""

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import cosign_tags
from prefect_dist.transfer.removal import UnwantedTag, remove_tag
from prefect_dist.transfer.session import Session
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.transfer.content import list_requests, reference_at

BUILT, SIGNATURE = images.image(1190, layers=1), images.artifact(1191)
INDEX, NEWER = images.index([BUILT]), images.image(1192, layers=1)
SIGNATURE_TAG = cosign_tags(Digest.parse(BUILT.root.digest))[0]


def test_a_manifest_that_another_tag_needs_is_not_deleted(session: Session) -> None:
    with FakeRegistry(deletes="manifests") as registry:
        images.load(registry, "copy", BUILT, "v1")
        images.load(registry, "copy", SIGNATURE, SIGNATURE_TAG)
        images.load(registry, "copy", SIGNATURE, "signature")
        signature = Digest.parse(SIGNATURE.root.digest)
        unwanted = (
            UnwantedTag(
                target=reference_at(registry, "copy:v1"),
                digest=Digest.parse(BUILT.root.digest),
                referrers=frozenset({signature}),
            ),
            UnwantedTag(target=reference_at(registry, "copy:signature"), digest=signature),
        )

        removed = remove_tag(session, reference_at(registry, "copy:signature"), unwanted, workers=1)

        assert removed.status == "shared"
        assert (removed.why or "").startswith(f"{registry.host}/copy:{SIGNATURE_TAG} needs {signature}, and ")
        assert f"DELETE /v2/copy/manifests/{signature}" not in list_requests(registry)
        assert registry.manifest("copy", SIGNATURE_TAG) is not None


def test_an_unwanted_tag_whose_publication_failed_does_not_keep_its_manifests(session: Session) -> None:
    """The tag still resolves to the digest before the publication. The mirror published that digest, too."""
    with FakeRegistry(deletes="manifests") as registry:
        images.load(registry, "copy", BUILT, "v1")
        images.load(registry, "copy", INDEX, "v2")
        unwanted = (
            UnwantedTag(target=reference_at(registry, "copy:v1"), digest=Digest.parse(BUILT.root.digest)),
            UnwantedTag(
                target=reference_at(registry, "copy:v2"),
                digest=Digest.parse(NEWER.root.digest),
                replaces=Digest.parse(INDEX.root.digest),
            ),
        )

        removed = [remove_tag(session, one.target, unwanted, workers=1).status for one in unwanted]

        assert removed == ["removed", "removed"]
        deletions = [request for request in list_requests(registry) if request.startswith("DELETE")]
        assert deletions[-2:] == [f"DELETE /v2/copy/manifests/{built.root.digest}" for built in (INDEX, BUILT)]
