"""Sample values for these tests: fixed values by name, and random values."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import strategies as st

from prefect_dist.ocispec import Descriptor, Digest, Platform, mediatypes
from prefect_dist.ocispec.errors import DistError

T = TypeVar("T")

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)
# Values of the wrong type or form, as in hostile or careless documents.
WRONG: list[Any] = [None, True, False, 0, 1, -1, 0.5, 2**70, "", "x", "\x00é\n", [], [None], [[]], {}, {"": 0}, [{}]]

digests = st.one_of(
    st.binary(max_size=3).map(Digest.of), st.binary(max_size=3).map(lambda data: Digest.of(data, algorithm="sha512"))
)
words = st.text(st.characters(codec="utf-8"), max_size=8)
platforms = st.builds(
    Platform,
    os=words,
    architecture=words,
    variant=st.none() | words.filter(bool),
    os_version=st.none() | words.filter(bool),
    os_features=st.lists(words, max_size=2).map(tuple),
)


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    data = draw(st.none() | st.binary(max_size=8))
    return Descriptor(
        media_type=draw(words),
        digest=draw(digests),
        size=draw(st.integers(0, 2**63 - 1)) if data is None else len(data),
        urls=tuple(draw(st.lists(words, max_size=2))),
        annotations=tuple(draw(st.dictionaries(words, words, max_size=2)).items()),
        data=data,
        artifact_type=draw(st.none() | words),
        platform=draw(st.none() | platforms),
    )


def make_descriptor(media_type: str = LAYER, name: str = "", *, platform: str | None = None) -> Descriptor:
    """Return a descriptor whose digest is that of `name`."""
    return Descriptor(
        media_type=media_type,
        digest=Digest.of(name.encode()),
        size=len(name),
        platform=None if platform is None else Platform.parse(platform),
    )


def written(media_type: str = LAYER, **more: Any) -> dict[str, Any]:
    """Return a descriptor in JSON form, as in a document."""
    return {"mediaType": media_type, "digest": DIGEST, "size": 7, **more}


def manifest(**more: Any) -> dict[str, Any]:
    """Return an OCI image manifest."""
    layers = [written(annotations={"title": "a"}), written(urls=["https://example.com/layer"])]
    config = written(mediatypes.OCI_CONFIG, data="MTIzNDU2Nw==")
    return {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": config, "layers": layers, **more}


def index(**more: Any) -> dict[str, Any]:
    """Return an OCI index with an image for Windows and a nested index."""
    platform = {"os": "windows", "architecture": "amd64", "os.version": "10.0", "os.features": ["win32k"], "variant": "v2"}
    listed = [written(mediatypes.OCI_MANIFEST, platform=platform), written(mediatypes.OCI_INDEX, artifactType="a/b")]
    return {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": listed, **more}


def artifact(**more: Any) -> dict[str, Any]:
    """Return an artifact manifest, as in the release candidates of image-spec 1.1."""
    return {"mediaType": mediatypes.OCI_ARTIFACT, "artifactType": "a/b", "blobs": [written("text/plain")], **more}


def raw(document: object) -> bytes:
    return json.dumps(document).encode()


def outcome(call: Callable[[], T]) -> T | DistError:
    """Return the result of `call`, or the DistError that it raises. Any other exception fails the test."""
    try:
        return call()
    except DistError as refusal:
        return refusal
