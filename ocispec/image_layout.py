"""The files and annotations of an image layout (image-spec 1.1, image-layout.md), in directories and in archives."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from prefect_dist.ocispec import mediatypes

INDEX, MARKER_NAME = "index.json", "oci-layout"
VERSION = "1.0.0"
MARKER = orjson.dumps({"imageLayoutVersion": VERSION})
"""The content of the file that marks a layout."""

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
NAMES = (REF_NAME, CONTAINERD_NAME)
"""The annotations of an index for image names. skopeo reads the first, containerd prefers the second."""


def make_empty_index() -> dict[str, Any]:
    """Return an image index without manifests, as a document to extend."""
    return {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": []}


def serialize_index(manifests: Sequence[Mapping[str, Any]], **more: object) -> bytes:
    """Return the bytes of an image index. `more` are further fields, in order."""
    return orjson.dumps(make_empty_index() | {"manifests": manifests} | more)
