"""Media types of manifests and their content (image-spec 1.1, media-types.md; Docker v2 schema 2).

A media type helps to find and to label content, but proves nothing about the content.
"""

from typing import Literal

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
OCTET_STREAM = "application/octet-stream"

Kind = Literal["index", "manifest", "artifact", "schema1", "config", "layer", "blob"]

_KINDS: dict[str, Kind] = {
    OCI_INDEX: "index",
    DOCKER_LIST: "index",
    OCI_MANIFEST: "manifest",
    DOCKER_MANIFEST: "manifest",
    OCI_ARTIFACT: "artifact",
    DOCKER_SCHEMA1: "schema1",
    DOCKER_SCHEMA1_SIGNED: "schema1",
    OCI_CONFIG: "config",
    DOCKER_CONFIG: "config",
}
# Layers that law or licence allows to download only from the URLs in their descriptors.
_FOREIGN = ("application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign.")
_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")

# The types that requests to the manifests endpoint of a registry accept, most preferred first.
MANIFESTS = (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST, OCI_ARTIFACT)


def kind(media_type: str) -> Kind:
    """Return the role of content with this media type; `blob` for unknown types."""
    if media_type.startswith(_LAYERS):
        return "layer"
    return _KINDS.get(media_type, "blob")


def is_manifest(media_type: str) -> bool:
    """Return True for types of manifests, which have children and use the manifests endpoint of a registry."""
    return media_type in MANIFESTS


def is_foreign(media_type: str) -> bool:
    """Return True for types of non-distributable layers (image-spec 1.1, layer.md, "Non-Distributable Layers")."""
    return media_type.startswith(_FOREIGN)
