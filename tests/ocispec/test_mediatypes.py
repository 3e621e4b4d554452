"""Tests of media types and the kinds that they announce."""

import pytest

from prefect_dist.ocispec import mediatypes
from tests import images

KINDS = [
    ("application/vnd.oci.image.index.v1+json", "index"),
    ("application/vnd.docker.distribution.manifest.list.v2+json", "index"),
    ("application/vnd.oci.image.manifest.v1+json", "manifest"),
    ("application/vnd.docker.distribution.manifest.v2+json", "manifest"),
    ("application/vnd.oci.artifact.manifest.v1+json", "artifact"),
    ("application/vnd.docker.distribution.manifest.v1+json", "schema1"),
    ("application/vnd.docker.distribution.manifest.v1+prettyjws", "schema1"),
    ("application/vnd.oci.image.config.v1+json", "config"),
    ("application/vnd.docker.container.image.v1+json", "config"),
    ("application/vnd.oci.image.layer.v1.tar", "layer"),
    ("application/vnd.oci.image.layer.v1.tar+gzip", "layer"),
    ("application/vnd.oci.image.layer.v1.tar+zstd", "layer"),
    ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "layer"),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "layer"),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", "layer"),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "layer"),
    ("application/vnd.oci.empty.v1+json", "blob"),
    ("application/vnd.docker.plugin.v1+json", "blob"),
    ("application/vnd.in-toto+json", "blob"),
    ("application/vnd.cncf.helm.config.v1+json", "blob"),
    ("application/octet-stream", "blob"),
    ("application/json", "blob"),
    ("text/html", "blob"),
    ("application/vnd.oci.image.layer", "blob"),
    ("x-application/vnd.oci.image.layer.v1.tar", "blob"),
    ("", "blob"),
]


@pytest.mark.parametrize(("media_type", "kind"), KINDS)
def test_the_kind_of_each_media_type(media_type: str, kind: str) -> None:
    assert mediatypes.kind(media_type) == kind
    assert mediatypes.is_manifest(media_type) is (kind in ("index", "manifest", "artifact"))


def test_the_table_has_every_constant() -> None:
    constants = {value for name, value in vars(mediatypes).items() if name.isupper() and isinstance(value, str)}
    assert len(constants) == 13
    assert constants <= {media_type for media_type, _ in KINDS}


def test_requests_accept_every_manifest_type_once_and_prefer_oci() -> None:
    assert sorted(mediatypes.MANIFESTS) == sorted(media_type for media_type, _ in KINDS if mediatypes.is_manifest(media_type))
    assert mediatypes.MANIFESTS.index(mediatypes.OCI_INDEX) < mediatypes.MANIFESTS.index(mediatypes.DOCKER_LIST)
    assert mediatypes.MANIFESTS.index(mediatypes.OCI_MANIFEST) < mediatypes.MANIFESTS.index(mediatypes.DOCKER_MANIFEST)


@pytest.mark.parametrize(
    "name", ["OCI_MANIFEST", "OCI_INDEX", "OCI_CONFIG", "OCI_EMPTY", "DOCKER_MANIFEST", "DOCKER_LIST", "DOCKER_CONFIG"]
)
def test_the_constants_match_the_test_images(name: str) -> None:
    assert getattr(mediatypes, name) == getattr(images, name)
