"""Tests of the walk over a tree of descriptors, and of the filters of children."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, mediatypes
from prefect_dist.ocispec.children import Children, children_reader, filter_platforms, walk_tree
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound, Unsupported
from tests import images
from tests.ocispec.samples import make_descriptor

ROOT, A, B, C, A1, A2, B1 = (make_descriptor(name=name) for name in ("root", "a", "b", "c", "a1", "a2", "b1"))
TREE = {ROOT: [A, B, C], A: [A1, A2], B: [B1]}

INDEX = make_descriptor(mediatypes.OCI_INDEX)
AMD64, ARM64, ARM_V6, ARM_V7 = (
    make_descriptor(mediatypes.OCI_MANIFEST, name, platform=name)
    for name in ("linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7")
)
ATTESTATION = make_descriptor(mediatypes.OCI_MANIFEST, "attestation", platform="unknown/unknown")
UNSAID = make_descriptor(mediatypes.OCI_INDEX, "nested")
LISTED = [ATTESTATION, AMD64, ARM64, ARM_V6, ARM_V7]


class Recorder:
    """A children function that reads from a tree and records the descriptors it was called for."""

    def __init__(self, tree: dict[Descriptor, list[Descriptor]], raising: dict[Descriptor, Exception] | None = None) -> None:
        self.seen: list[Descriptor] = []
        self._tree = tree
        self._raising = raising or {}

    def __call__(self, descriptor: Descriptor) -> Sequence[Descriptor]:
        self.seen.append(descriptor)
        if descriptor in self._raising:
            raise self._raising[descriptor]
        return self._tree.get(descriptor, [])


def fixed_children(*found: Descriptor) -> Children:
    return lambda _: found


def wishes(*texts: str) -> list[Platform]:
    return [Platform.parse(text) for text in texts]


def test_a_walk_is_depth_first_with_siblings_in_order() -> None:
    assert list(walk_tree(Recorder(TREE), ROOT)) == [ROOT, A, A1, A2, B, B1, C]


def test_a_walk_yields_its_roots_in_order() -> None:
    assert list(walk_tree(Recorder(TREE), B, A)) == [B, B1, A, A1, A2]


def test_a_walk_yields_shared_content_at_its_first_place_and_reads_it_once() -> None:
    children = Recorder({ROOT: [A, A, B], A: [C], B: [C, B1, ROOT]})
    assert list(walk_tree(children, ROOT, B, ROOT)) == [ROOT, A, C, B, B1]
    assert children.seen == [ROOT, A, C, B, B1]


def test_a_walk_yields_content_once_whatever_its_annotations() -> None:
    annotated = replace(A, annotations=(("org.opencontainers.image.ref.name", "v1"),))
    assert list(walk_tree(Recorder({ROOT: [A, annotated, B]}), ROOT)) == [ROOT, A, B]


def test_a_walk_reads_children_only_after_the_caller_has_handled_their_parent() -> None:
    children = Recorder(TREE)
    walk = walk_tree(children, ROOT)
    assert [next(walk), next(walk)] == [ROOT, A]
    assert children.seen == [ROOT]


def test_the_first_error_ends_a_walk() -> None:
    children = Recorder(TREE, {B: Corrupt("first"), C: Corrupt("second")})
    with pytest.raises(Corrupt, match="first"):
        list(walk_tree(children, ROOT))
    assert children.seen == [ROOT, A, A1, A2, B]


def test_a_walk_without_roots_yields_nothing() -> None:
    assert list(walk_tree(Recorder({}))) == []


def test_a_deep_walk_does_not_recurse() -> None:
    deep = [make_descriptor(name=str(level)) for level in range(5000)]
    assert list(walk_tree(Recorder({parent: [child] for parent, child in pairwise(deep)}), deep[0])) == deep


def test_children_are_parsed_from_the_bytes_that_read_returns() -> None:
    built = images.index([images.image(1)])
    raws = {manifest.digest: manifest.raw for manifest in built.manifests}
    read: list[str] = []

    def content(descriptor: Descriptor) -> bytes:
        read.append(str(descriptor.digest))
        return raws[str(descriptor.digest)]

    root = Descriptor(media_type=built.root.media_type, digest=Digest.parse(built.root.digest), size=built.root.size)
    seen = [str(descriptor.digest) for descriptor in walk_tree(children_reader(content), root)]
    assert seen == [built.manifests[-1].digest, built.manifests[0].digest, *built.blobs]
    assert read == [built.manifests[-1].digest, built.manifests[0].digest]


@pytest.mark.parametrize("media_type", [images.OCI_LAYER, images.OCI_CONFIG, "text/plain", "application/vnd.in-toto+json"])
def test_content_that_is_not_a_manifest_is_not_read(media_type: str) -> None:
    assert children_reader(lambda _: pytest.fail("read"))(make_descriptor(media_type)) == ()


def test_schema_1_is_refused_without_reading_it() -> None:
    with pytest.raises(Unsupported, match=r"^schema1 sha256:[0-9a-f]{64}: .*schema 1"):
        children_reader(lambda _: pytest.fail("read"))(make_descriptor(mediatypes.DOCKER_SCHEMA1_SIGNED))


def test_the_error_of_a_bad_manifest_names_its_descriptor() -> None:
    with pytest.raises(InvalidInput, match=r"^index sha256:[0-9a-f]{64}: not JSON"):
        children_reader(lambda _: b"<html>")(INDEX)


@pytest.mark.parametrize(
    ("platforms", "chosen"),
    [
        (wishes("linux/amd64"), [AMD64]),
        (wishes("linux/arm64", "linux/x86_64"), [AMD64, ARM64]),
        (wishes("linux/arm"), [ARM_V7]),
        (wishes("linux/arm/v6"), [ARM_V6]),
        (wishes("linux/amd64", "linux/s390x"), [AMD64]),
        (None, LISTED),
    ],
)
def test_the_filter_keeps_the_best_manifests_for_the_wanted_platforms(
    platforms: list[Platform] | None, chosen: list[Descriptor]
) -> None:
    handler = filter_platforms(fixed_children(*LISTED), platforms)
    assert list(handler(INDEX)) == chosen
    assert list(handler(INDEX)) == chosen


def attestation_for(about: Descriptor, *, platform: str = "unknown/unknown", kind: str = "attestation-manifest") -> Descriptor:
    pairs = (("vnd.docker.reference.digest", str(about.digest)), ("vnd.docker.reference.type", kind))
    return replace(make_descriptor(mediatypes.OCI_MANIFEST, f"{about} {platform} {kind}", platform=platform), annotations=pairs)


def test_attestations_of_selected_platforms_are_kept_in_the_order_of_the_index() -> None:
    first, second = attestation_for(AMD64), attestation_for(ARM64)
    handler = filter_platforms(fixed_children(second, AMD64, ARM64, first), wishes("linux/arm64"))
    assert list(handler(INDEX)) == [second, ARM64]


@pytest.mark.parametrize(
    "odd",
    [attestation_for(AMD64), attestation_for(ARM64, kind="other"), attestation_for(ARM64, platform="linux/amd64"), ATTESTATION],
    ids=["another platform", "another type", "a platform of its own", "no annotations"],
)
def test_attestations_of_other_platforms_are_left_out(odd: Descriptor) -> None:
    assert list(filter_platforms(fixed_children(odd, AMD64, ARM64), wishes("linux/arm64"))(INDEX)) == [ARM64]


def test_an_attestation_does_not_count_as_an_image_for_a_platform() -> None:
    with pytest.raises(NotFound):
        filter_platforms(fixed_children(attestation_for(AMD64)), wishes("linux/amd64"))(INDEX)


def test_platforms_from_a_generator_apply_to_every_index() -> None:
    handler = filter_platforms(fixed_children(*LISTED), (platform for platform in wishes("linux/amd64")))
    assert [list(handler(INDEX)), list(handler(INDEX))] == [[AMD64], [AMD64]]


def test_an_empty_list_of_platforms_selects_nothing() -> None:
    with pytest.raises(NotFound):
        filter_platforms(fixed_children(*LISTED), [])(INDEX)


def test_a_manifest_without_a_platform_passes_the_filter() -> None:
    assert list(filter_platforms(fixed_children(UNSAID, AMD64), wishes("linux/s390x"))(INDEX)) == [UNSAID]


def test_an_index_without_a_wanted_platform_is_an_error_that_lists_its_platforms() -> None:
    with pytest.raises(NotFound) as refusal:
        filter_platforms(fixed_children(ARM64, AMD64, AMD64, ATTESTATION), wishes("linux/s390x", "windows/amd64"))(INDEX)
    assert str(refusal.value) == (
        f"{INDEX}: no manifest for linux/s390x, windows/amd64; the index has 'linux/amd64', 'linux/arm64', 'unknown/unknown'"
    )


def test_the_error_lists_only_some_of_very_many_platforms() -> None:
    many = [make_descriptor(platform=f"linux/{number:04}{'x' * 1000}") for number in range(1000)]
    with pytest.raises(NotFound) as refusal:
        filter_platforms(fixed_children(*many), wishes("linux/amd64"))(INDEX)
    assert str(refusal.value).endswith(" and 980 more")
    assert len(str(refusal.value)) < 10_000


def test_a_platform_with_a_line_break_keeps_the_error_on_one_line() -> None:
    odd = Descriptor(
        media_type=mediatypes.OCI_MANIFEST, digest=A.digest, size=1, platform=Platform(os="a\n\x1b[2J", architecture="b")
    )
    with pytest.raises(NotFound) as refusal:
        filter_platforms(fixed_children(odd), wishes("linux/amd64"))(INDEX)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("descriptor", [AMD64, make_descriptor(), make_descriptor(mediatypes.OCI_ARTIFACT)])
def test_only_indexes_are_filtered(descriptor: Descriptor) -> None:
    assert list(filter_platforms(fixed_children(*LISTED), wishes("linux/amd64"))(descriptor)) == LISTED


def test_an_empty_index_passes_the_filter() -> None:
    assert list(filter_platforms(fixed_children(), wishes("linux/amd64"))(INDEX)) == []
