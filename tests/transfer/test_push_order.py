"""The push order: children, then their manifest, then referrers, then digest tags, and the tag of the image last."""

import itertools

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.children import children_reader, walk_tree
from prefect_dist.ocispec.referrers import Referrer, cosign_tags
from prefect_dist.transfer.push_order import push_order
from tests import images
from tests.remotes.archive_remotes import content_of
from tests.storage.archives import descriptor, memory_store
from tests.storage.conformance import ingest

ONE, ARM = images.image(8600, layers=1), images.image(8601, layers=1, platform="linux/arm64")
INDEX = images.index([ONE, ARM])
BILL, SIGNATURE = images.artifact(8602, subject=INDEX), images.artifact(8603)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]


def order(*referrers: Referrer) -> list[tuple[str, str | None]]:
    """Return the push order of the index with referrers; the order of the content does not matter."""
    store = memory_store()
    content = content_of(INDEX) | content_of(BILL) | content_of(SIGNATURE)
    for raw in content.values():
        ingest(store, raw)
    children = children_reader(store.manifest)
    roots = (descriptor(INDEX), *(one.descriptor for one in referrers))
    found = list(walk_tree(children, *roots))
    orders = [
        list(push_order(store, one, children, root=roots[0], tag="v1", referrers=referrers)) for one in (found, found[::-1])
    ]
    for made in orders:
        seen = set[Digest]()
        for one, _ in made:
            assert {child.digest for child in children(one)} <= seen
            seen.add(one.digest)
    return [(str(one.digest), tag) for one, tag in orders[0] if one.is_manifest]


def test_digest_tags_follow_the_image_and_its_tag_is_last() -> None:
    found = order(Referrer(descriptor(SIGNATURE), SIGNATURE_TAG), Referrer(descriptor(BILL)))
    assert found[-2:] == [(SIGNATURE.root.digest, SIGNATURE_TAG), (INDEX.root.digest, "v1")]
    assert found.index((INDEX.root.digest, None)) < found.index((BILL.root.digest, None)) < len(found) - 2


@pytest.mark.parametrize("about", [ONE, INDEX])
def test_a_digest_tag_may_lead_to_content_of_the_image(about: images.BuiltImage) -> None:
    """A person can give any manifest a digest tag, so the tags may form a cycle with the content."""
    tag = cosign_tags(Digest.parse(about.root.digest))[0]
    for child in (ONE, INDEX):
        found = order(Referrer(descriptor(child), tag))
        assert (child.root.digest, tag) in found
        assert found[-1] == (INDEX.root.digest, "v1")


def test_every_descriptor_is_pushed_once_for_each_tag() -> None:
    found = order(*(Referrer(descriptor(SIGNATURE), tag) for tag in cosign_tags(Digest.parse(INDEX.root.digest))))
    tagged = [tag for digest, tag in found if digest == SIGNATURE.root.digest]
    assert sorted(tagged, key=str) == sorted(cosign_tags(Digest.parse(INDEX.root.digest)))
    assert all(len(list(group)) == 1 for _, group in itertools.groupby(sorted(found, key=str)))
