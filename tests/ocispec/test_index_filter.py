"""Tests of filtered indexes: manifests that are left out, parts that stay unchanged, and new digests."""

from base64 import b64encode
from collections.abc import Callable

import orjson
import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, manifest
from prefect_dist.ocispec.errors import NotFound, Unsupported
from prefect_dist.ocispec.index_filter import FilteredIndex, filter_index
from tests import images
from tests.images import BuiltImage

AMD, ARM, S390 = (images.image(number, platform=f"linux/{arch}") for number, arch in enumerate(("amd64", "arm64", "s390x")))
ALL = images.index([AMD, ARM, S390])


def root(image: BuiltImage) -> Descriptor:
    return Descriptor(media_type=image.root.media_type, digest=Digest.parse(image.root.digest), size=image.root.size)


def reader(image: BuiltImage) -> Callable[[Descriptor], bytes]:
    documents = {one.digest: one.raw for one in image.manifests}
    return lambda descriptor: documents[str(descriptor.digest)]


def filter_to(image: BuiltImage, *platforms: str) -> FilteredIndex:
    return filter_index(root(image), tuple(map(Platform.parse, platforms)), reader(image))


def data(descriptor: Descriptor) -> bytes:
    assert descriptor.data is not None
    return descriptor.data


def test_a_filtered_index_is_a_new_document_with_its_own_digest() -> None:
    found = filter_to(ALL, "linux/arm64", "linux/amd64")
    assert found.indexes == (found.root,)
    assert found.root.media_type == images.OCI_INDEX
    assert found.root.digest == Digest.of(data(found.root))
    assert found.root.size == len(data(found.root))
    assert found.root.digest != root(ALL).digest
    children = manifest.children(data(found.root), images.OCI_INDEX, at="new")
    assert [str(child.digest) for child in children] == [AMD.root.digest, ARM.root.digest]


def test_equal_input_gives_equal_bytes() -> None:
    assert filter_to(ALL, "linux/arm64") == filter_to(ALL, "linux/arm64")
    assert filter_to(ALL, "linux/arm64").root != filter_to(ALL, "linux/amd64").root


def test_other_fields_of_an_index_are_kept_in_their_order() -> None:
    old = {"annotations": {"b": "1", "a": "2"}, **orjson.loads(ALL.manifests[-1].raw), "unknown": [1, {"x": None}]}
    raw = orjson.dumps(old)
    descriptor = Descriptor(media_type=images.OCI_INDEX, digest=Digest.of(raw), size=len(raw))
    found = filter_index(descriptor, (Platform.parse("linux/s390x"),), lambda _: raw)
    new = orjson.loads(data(found.root))
    assert list(new) == list(old)
    assert new["manifests"] == [entry for entry in old["manifests"] if entry["platform"]["architecture"] == "s390x"]
    assert {key: value for key, value in new.items() if key != "manifests"} == {
        key: value for key, value in old.items() if key != "manifests"
    }


@pytest.mark.parametrize("image", [AMD, images.index([AMD, ARM])], ids=["an image", "an index of nothing else"])
def test_an_index_that_needs_no_change_is_not_rewritten(image: BuiltImage) -> None:
    assert filter_to(image, "linux/amd64", "linux/arm64") == FilteredIndex(root=root(image))


def test_a_nested_index_is_rewritten_before_its_parent() -> None:
    outer = images.index([AMD, ARM, S390], nested=True)
    inner, new = filter_to(outer, "linux/amd64").indexes
    (listed,) = manifest.children(data(new), images.OCI_INDEX, at="outer")
    assert (listed.digest, listed.size) == (inner.digest, len(data(inner)))
    (image,) = manifest.children(data(inner), images.OCI_INDEX, at="inner")
    assert str(image.digest) == AMD.root.digest


def test_a_rewritten_index_loses_its_inline_data_in_the_parent() -> None:
    inner = orjson.loads(images.index([AMD, ARM]).manifests[-1].raw)
    raw = orjson.dumps(inner)
    entry = {"mediaType": images.OCI_INDEX, "digest": images.digest_of(raw), "size": len(raw), "data": b64encode(raw).decode()}
    outer = orjson.dumps({"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [entry]})
    documents = {images.digest_of(document): document for document in (raw, outer)}
    top = Descriptor(media_type=images.OCI_INDEX, digest=Digest.of(outer), size=len(outer))
    found = filter_index(top, (Platform.parse("linux/arm64"),), lambda descriptor: documents[str(descriptor.digest)])
    assert "data" not in orjson.loads(data(found.root))["manifests"][0]


def test_an_index_without_any_wanted_platform_is_refused() -> None:
    with pytest.raises(NotFound, match=r"no manifest for linux/riscv64; the index has .*linux/amd64"):
        filter_to(ALL, "linux/riscv64")


def test_endlessly_nested_indexes_are_refused() -> None:
    image = images.index([AMD, ARM])
    for _ in range(20):
        image = images.index([image])
    with pytest.raises(Unsupported, match="expected at most 16 nested indexes"):
        filter_to(image, "linux/amd64")
