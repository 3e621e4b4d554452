"""Tests of manifests: their children, refused documents, and the safety of parsing arbitrary bytes."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec import Descriptor, mediatypes
from prefect_dist.ocispec.errors import DistError, InvalidInput, Unsupported
from prefect_dist.ocispec.manifest import MAX_BYTES, children, media_type_of
from tests import images
from tests.ocispec.samples import DIGEST, JSON, WRONG, artifact, index, manifest, outcome, raw, written

OCI = images.image(1, layers=2)
DOCKER = images.image(1, layers=2, docker=True)
ARTIFACT = images.artifact(2, subject=OCI)
LIST = images.index([OCI, images.image(2, platform="linux/arm/v7")])
DOCKER_LIST = images.index([DOCKER, images.image(2, docker=True)], docker=True)
NESTED = images.index([LIST, ARTIFACT])
EMPTY = images.index([])
BARE = images.image(3, layers=0)

KINDS = {
    "manifest": (OCI, mediatypes.OCI_MANIFEST, ["config", "layer", "layer"]),
    "docker manifest": (DOCKER, mediatypes.DOCKER_MANIFEST, ["config", "layer", "layer"]),
    "without layers": (BARE, mediatypes.OCI_MANIFEST, ["config"]),
    "artifact, its subject is no child": (ARTIFACT, mediatypes.OCI_MANIFEST, ["blob", "blob"]),
    "index": (LIST, mediatypes.OCI_INDEX, ["manifest", "manifest"]),
    "docker list": (DOCKER_LIST, mediatypes.DOCKER_LIST, ["manifest", "manifest"]),
    "nested index": (NESTED, mediatypes.OCI_INDEX, ["index", "manifest"]),
    "empty index": (EMPTY, mediatypes.OCI_INDEX, []),
}

SCHEMA1 = {
    "schemaVersion": 1,
    "name": "a/b",
    "tag": "t",
    "architecture": "amd64",
    "fsLayers": [{"blobSum": DIGEST}],
    "history": [],
}

REFUSED: list[tuple[dict[str, Any], str]] = [
    (manifest(config=None), "m.config: missing, expected an object"),
    (manifest(config=[]), "m.config: expected an object, got a list"),
    (manifest(config={}), "m.config.size: missing, expected an integer"),
    (manifest(config=written(size=-1)), "m.config.size: expected 0 to 9223372036854775807, got -1"),
    (manifest(config=written(size=2**70)), "m.config.size: expected an integer, got 1.1805916207174113e+21"),
    (manifest(layers={}), "m.layers: expected a list, got an object"),
    (manifest(layers=[written(), None]), "m.layers[1]: expected an object, got None"),
    (manifest(layers=[written(), written(digest="x")]), "m.layers[1].digest 'x': expected algorithm:hex"),
    (manifest(layers=[written(annotations={"a": 1})]), "m.layers[0].annotations['a']: expected a string, got an integer"),
    (manifest(mediaType=1), "m.mediaType: expected a string, got an integer"),
    (manifest(mediaType="text/html"), "m.mediaType: expected the type of a manifest, got 'text/html'"),
    (manifest(mediaType=""), "m.mediaType: expected the type of a manifest, got ''"),
    (manifest(mediaType=images.OCI_LAYER), f"m.mediaType: expected the type of a manifest, got '{images.OCI_LAYER}'"),
    (index(manifests={}), "m.manifests: expected a list, got an object"),
    (index(manifests=[[]]), "m.manifests[0]: expected an object, got a list"),
    (index(manifests=[written(platform=1)]), "m.manifests[0].platform: expected an object, got an integer"),
    (artifact(blobs=[written(size="7")]), "m.blobs[0].size: expected an integer, got a string"),
    ({}, "m: expected a manifest, got an object with neither manifests nor config"),
    ({"errors": [{"code": "DENIED"}]}, "m: expected a manifest, got an object with neither manifests nor config"),
    ({"blobs": [written()]}, "m: expected a manifest, got an object with neither manifests nor config"),
]

_TWO = "; refused, since tools would disagree about it"
AMBIGUOUS = [
    (manifest(manifests=[written()]), f"m: has the fields of both index and manifest{_TWO}"),
    (index(config=written()), f"m: has the fields of both index and manifest{_TWO}"),
    (index(layers=[written()]), f"m: has the fields of both index and manifest{_TWO}"),
    (index(blobs=[written()]), f"m: has the fields of both artifact and index{_TWO}"),
    (manifest(blobs=[written()]), f"m: has the fields of both artifact and manifest{_TWO}"),
    (artifact(layers=[written()]), f"m: has the fields of both artifact and manifest{_TWO}"),
    ({"manifests": [written()], "config": written()}, f"m: has the fields of both index and manifest{_TWO}"),
    ({"manifests": [], "config": written()}, "m: expected the fields of index, got the fields of another type"),
    (
        manifest(mediaType=mediatypes.OCI_INDEX),
        f"m: expected the fields of {mediatypes.OCI_INDEX}, got the fields of another type",
    ),
    (
        manifest(mediaType=mediatypes.DOCKER_LIST),
        f"m: expected the fields of {mediatypes.DOCKER_LIST}, got the fields of another type",
    ),
    (
        index(mediaType=mediatypes.OCI_MANIFEST),
        f"m: expected the fields of {mediatypes.OCI_MANIFEST}, got the fields of another type",
    ),
    (
        manifest(mediaType=mediatypes.OCI_ARTIFACT),
        f"m: expected the fields of {mediatypes.OCI_ARTIFACT}, got the fields of another type",
    ),
    (
        artifact(mediaType=mediatypes.OCI_MANIFEST),
        f"m: expected the fields of {mediatypes.OCI_MANIFEST}, got the fields of another type",
    ),
]

NO_MANIFEST = [
    (b"", "not JSON"),
    (b"<!DOCTYPE html><html><title>Sign in</title></html>", "it starts with b'<!DOCTYPE html>"),
    (b"\x1f\x8b\x08\x00", "it starts with b'\\x1f\\x8b"),
    (b"[]", "expected a JSON object, got a list"),
    (b'"a"', "expected a JSON object, got a string"),
    (b"1", "expected a JSON object, got an integer"),
    (b"null", "expected a JSON object, got None"),
    (b'{"layers":' + b"[" * 100_000, "not JSON"),
]


def fill_document(begin: bytes, piece: bytes, end: bytes) -> bytes:
    """Return a document that is filled with pieces up to the maximum size of a manifest."""
    pieces = piece * ((MAX_BYTES - len(begin) - len(end)) // len(piece))
    return begin + pieces.removesuffix(b",") + end


_ENTRY = b'{"mediaType": "a/b", "size": 7, "digest": "%b"}'
# Documents of the maximum size or depth: the number of children, or the start of the error.
BOMBS = {
    "as deep as is read": (
        b'{"manifests": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        "m.manifests[0]: expected an object, got a list",
    ),
    "deeper": (fill_document(b'{"manifests": ', b"[", b""), "m: not JSON ("),
    "deep objects": (fill_document(b"", b'{"a":', b"1"), "m: not JSON ("),
    "wide": (fill_document(b'{"manifests": [', b"[],", b"]}"), "m.manifests: expected at most 10000 entries, got 1398095"),
    "wide in another field": (fill_document(b'{"manifests": [], "else": [', b"[],", b"]}"), 0),
    "entries": (
        fill_document(b'{"manifests": [', _ENTRY % DIGEST.encode() + b",", b"]}"),
        "m.manifests: expected at most 10000 entries",
    ),
    "as many entries as may be": (b'{"manifests": [' + b", ".join([_ENTRY % DIGEST.encode()] * 10_000) + b"]}", 10_000),
    "a long key": (fill_document(b'{"manifests": [], "', b"k", b'": 1}'), 0),
    "a long type": (
        fill_document(b'{"manifests": [], "mediaType": "', b"t", b'"}'),
        "m.mediaType: expected the type of a manifest",
    ),
    "a long digest": (fill_document(b'{"manifests": [' + _ENTRY[:-4], b"d", b'"}]}'), "m.manifests[0].digest 'dddd"),
    "a long number": (fill_document(b'{"manifests": [{"size": ', b"9", b"}]}"), "m: not JSON (number is infinity"),
    "a long annotation": (
        fill_document(b'{"manifests": [' + _ENTRY[:-1] % DIGEST.encode() + b', "annotations": {"', b"k", b'": 1}}]}'),
        "m.manifests[0].annotations['kkkk",
    ),
}


def read(document: dict[str, Any]) -> tuple[Descriptor, ...]:
    """Return the children of a document under its own media type, or under the type that fits its fields."""
    claimed = document.get("mediaType")
    fits = mediatypes.OCI_INDEX if "manifests" in document else mediatypes.OCI_MANIFEST
    return children(raw(document), claimed if claimed in mediatypes.MANIFESTS else fits, at="m")


def places(document: Any) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value in a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in items:
        yield (key,)
        yield from ((key, *path) for path in places(value))


def replace_value(document: Any, path: tuple[str | int, ...], value: object) -> Any:
    """Return a copy of a document with one value replaced."""
    changed = json.loads(json.dumps(document))
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


@pytest.mark.parametrize(("image", "media_type", "kinds"), KINDS.values(), ids=KINDS)
def test_children_are_the_descriptors_of_the_document_in_order(
    image: images.BuiltImage, media_type: str, kinds: list[str]
) -> None:
    document = json.loads(image.manifests[-1].raw)
    listed = document["manifests"] if "manifests" in document else [document["config"], *document["layers"]]
    found = children(image.manifests[-1].raw, media_type, at="m")
    assert [child.to_json() for child in found] == listed
    assert [child.kind for child in found] == kinds


def test_children_of_an_artifact_manifest_are_its_blobs() -> None:
    found = children(raw(artifact(subject=written(mediatypes.OCI_MANIFEST))), mediatypes.OCI_ARTIFACT, at="m")
    assert [child.to_json() for child in found] == [written("text/plain")]


def test_equal_children_are_all_returned() -> None:
    assert len(read(manifest(layers=[written(), written()]))) == 3


@pytest.mark.parametrize("media_type", ["application/octet-stream", "", "text/html", images.OCI_LAYER, images.OCI_CONFIG])
@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", raw(manifest()), raw(SCHEMA1)], ids=repr)
def test_content_of_another_media_type_has_no_children(content: bytes, media_type: str) -> None:
    assert children(content, media_type, at="m") == ()


@pytest.mark.parametrize("media_type", [mediatypes.OCI_MANIFEST, mediatypes.DOCKER_MANIFEST])
@pytest.mark.parametrize("change", [{}, {"mediaType": mediatypes.OCI_MANIFEST}, {"mediaType": mediatypes.DOCKER_MANIFEST}])
def test_oci_and_docker_documents_give_the_same_children(change: dict[str, str], media_type: str) -> None:
    document = {"config": written(), "layers": [written()]} | change
    assert len(children(raw(document), media_type, at="m")) == 2


@pytest.mark.parametrize(
    ("document", "count"),
    [
        (manifest(layers=None), 1),
        ({"config": written()}, 1),
        (manifest(manifests=[]), 3),
        (manifest(manifests=None), 3),
        (manifest(fsLayers=None), 3),
        (index(manifests=None), 0),
        ({"manifests": None}, 0),
        ({"mediaType": mediatypes.OCI_INDEX}, 0),
        (index(config=None, layers=[]), 2),
        (artifact(blobs=None), 0),
    ],
)
def test_null_and_empty_lists_count_as_absent(document: dict[str, Any], count: int) -> None:
    assert len(read(document)) == count


@pytest.mark.parametrize(("document", "message"), [*REFUSED, *AMBIGUOUS])
def test_a_bad_document_is_refused_with_the_path(document: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        read(document)
    assert str(refusal.value) == message


@pytest.mark.parametrize(("document", "message"), AMBIGUOUS)
def test_an_ambiguous_document_has_no_media_type(document: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        media_type_of(raw(document), at="m")
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        (manifest(), mediatypes.OCI_INDEX),
        (manifest(), mediatypes.DOCKER_LIST),
        (manifest(), mediatypes.OCI_ARTIFACT),
        (index(), mediatypes.OCI_MANIFEST),
        (index(), mediatypes.DOCKER_MANIFEST),
        (artifact(), mediatypes.OCI_MANIFEST),
        ({"manifests": []}, mediatypes.OCI_MANIFEST),
        ({"config": {}}, mediatypes.OCI_INDEX),
    ],
)
def test_a_document_of_another_kind_than_its_media_type_is_refused(document: dict[str, Any], media_type: str) -> None:
    with pytest.raises(InvalidInput, match=r"^m: expected application/\S+, got a document of another type$"):
        children(raw(document), media_type, at="m")


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        (SCHEMA1, mediatypes.OCI_MANIFEST),
        (SCHEMA1, mediatypes.OCI_INDEX),
        ({"schemaVersion": 1}, mediatypes.DOCKER_MANIFEST),
        ({"fsLayers": []}, mediatypes.DOCKER_MANIFEST),
        (manifest(schemaVersion=1), mediatypes.OCI_MANIFEST),
        (manifest(fsLayers=[{"blobSum": DIGEST}]), mediatypes.OCI_MANIFEST),
        (index(fsLayers=[]), mediatypes.OCI_INDEX),
        ({"mediaType": mediatypes.DOCKER_SCHEMA1}, mediatypes.OCI_MANIFEST),
        ({"mediaType": mediatypes.DOCKER_SCHEMA1_SIGNED}, mediatypes.OCI_MANIFEST),
    ],
)
def test_schema_1_is_refused_by_name(document: dict[str, Any], media_type: str) -> None:
    said = "^m: image manifest version 2, schema 1 is obsolete and refused; rebuild or re-push the image$"
    with pytest.raises(Unsupported, match=said):
        children(raw(document), media_type, at="m")
    with pytest.raises(Unsupported, match=said):
        media_type_of(raw(document), at="m")


@pytest.mark.parametrize("media_type", [mediatypes.DOCKER_SCHEMA1, mediatypes.DOCKER_SCHEMA1_SIGNED])
def test_schema_1_is_refused_by_its_media_type_for_any_bytes(media_type: str) -> None:
    with pytest.raises(Unsupported, match="schema 1"):
        children(b"", media_type, at="m")


@pytest.mark.parametrize(("content", "says"), NO_MANIFEST)
@pytest.mark.parametrize("media_type", mediatypes.MANIFESTS)
def test_bytes_that_are_no_manifest_are_refused(content: bytes, says: str, media_type: str) -> None:
    with pytest.raises(InvalidInput, match=r"^m: ") as refusal:
        children(content, media_type, at="m")
    assert says in str(refusal.value)
    assert says in str(outcome(lambda: media_type_of(content, at="m")))


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        *((manifest(mediaType=known), known) for known in (mediatypes.OCI_MANIFEST, mediatypes.DOCKER_MANIFEST)),
        *((index(mediaType=known), known) for known in (mediatypes.OCI_INDEX, mediatypes.DOCKER_LIST)),
        (artifact(), mediatypes.OCI_ARTIFACT),
        (manifest(mediaType=None), mediatypes.OCI_MANIFEST),
        ({"layers": []}, mediatypes.OCI_MANIFEST),
        (index(mediaType=None), mediatypes.OCI_INDEX),
        ({"manifests": []}, mediatypes.OCI_INDEX),
    ],
)
def test_the_media_type_of_a_document(document: dict[str, Any], media_type: str) -> None:
    assert media_type_of(raw(document), at="m") == media_type


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize("document", [manifest(), index(), artifact()], ids=["manifest", "index", "artifact"])
def test_any_value_at_every_path_is_parsed_or_raises_a_dist_error(document: dict[str, Any], wrong: object) -> None:
    paths = list(places(document))
    assert len(paths) >= 7
    for path in paths:
        found = outcome(partial(read, replace_value(document, path, wrong)))
        assert str(found).isprintable() if isinstance(found, DistError) else all(child.size >= 0 for child in found)


@given(
    st.dictionaries(st.sampled_from(["schemaVersion", "mediaType", "manifests", "config", "layers", "blobs", "fsLayers"]), JSON)
)
def test_any_document_is_parsed_or_raises_a_dist_error(document: dict[str, Any]) -> None:
    for media_type in mediatypes.MANIFESTS:
        found = outcome(partial(children, raw(document), media_type, at="m"))
        assert found == () or isinstance(found, InvalidInput | Unsupported)


@given(st.binary(), st.sampled_from(mediatypes.MANIFESTS))
def test_any_bytes_raise_a_dist_error(content: bytes, media_type: str) -> None:
    with pytest.raises(InvalidInput, match=r"^m: "):
        children(content, media_type, at="m")


@pytest.mark.parametrize(("content", "expected"), BOMBS.values(), ids=BOMBS)
def test_very_large_and_very_deep_documents_are_limited(content: bytes, expected: int | str) -> None:
    found = outcome(lambda: children(content, mediatypes.OCI_INDEX, at="m"))
    if isinstance(expected, int):
        assert isinstance(found, tuple)
        assert len(found) == expected
    else:
        assert isinstance(found, InvalidInput | Unsupported)
        assert str(found).startswith(expected)
        assert len(str(found)) < 500


def test_the_size_limit_is_that_of_registries() -> None:
    assert MAX_BYTES == 4_194_304
