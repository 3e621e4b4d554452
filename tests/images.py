"""Random images for tests: real layers, configs, manifests and indexes. Their bytes depend only on the seed.

The images follow OCI image-spec 1.1 and the image manifest version 2, schema 2, of Docker. This module does not import the
tested package, so that tests find a wrong reading of these formats. Registries and fakes serve the images.
"""

import gzip
import hashlib
import http.client
import io
import json
import random
import tarfile
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
ARTIFACT = "application/vnd.example.random.v1"

_TIMEOUT_S = 30
_LARGE_BYTES = 1 << 20


class Root(NamedTuple):
    """Digest, media type and size in bytes of the topmost manifest of an image."""

    digest: str
    media_type: str
    size: int


class Manifest(NamedTuple):
    """A manifest or index: its digest, its media type and its bytes."""

    digest: str
    media_type: str
    raw: bytes


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class BuiltImage:
    """An image, an index of images or an artifact, with its content.

    Attributes:
        blobs: configs and layers by digest, in the order of their manifests.
        manifests: manifests and indexes, children before parents, the root last.
        platform: "os/architecture[/variant]" of an image; None for an index or an artifact.
        annotations: annotations of its descriptor in an index.
    """

    blobs: dict[str, bytes]
    manifests: tuple[Manifest, ...]
    platform: str | None = None
    annotations: tuple[tuple[str, str], ...] = ()

    @property
    def root(self) -> Root:
        """The topmost manifest."""
        digest, media_type, raw = self.manifests[-1]
        return Root(digest, media_type, len(raw))

    @property
    def descriptors(self) -> list[str]:
        """Each digest once, in an order in which a client may push: the blobs, then the manifests, the root last."""
        return [*self.blobs, *(manifest.digest for manifest in self.manifests)]


class ContentReceiver(Protocol):
    """The methods of the fake registry that `load` calls."""

    def put_blob(self, repository: str, data: bytes, /) -> object:
        """Store a blob."""

    def put_manifest(self, repository: str, raw: bytes, media_type: str, /, *, tag: str | None = None) -> object:
        """Store a manifest under its digest and, if `tag` is not None, under a tag."""


class _Layer(NamedTuple):
    packed: bytes
    diff_id: str


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes: "sha256:" and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image(
    seed: int, layers: int = 3, *, layer_bytes: int = 1000, docker: bool = False, platform: str = "linux/amd64"
) -> BuiltImage:
    """Build an image of one platform.

    Args:
        seed: images with the same seed have the same layers on all platforms, as real images often have.
        layers: number of layers, 0 or more.
        layer_bytes: size of the one random file in each layer; the blob is some 150 bytes larger, and up to 16 kB larger
            than a file of 1 MiB or more.
        docker: use Docker's media types instead of OCI's.
        platform: "os/architecture" or "os/architecture/variant".
    """
    manifest_type, config_type, layer_type = (
        (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER) if docker else (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER)
    )
    built_layers = [_layer(f"{seed}/{number}", layer_bytes) for number in range(layers)]
    config = _config(platform, [layer.diff_id for layer in built_layers])
    body = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": _descriptor(config_type, config),
        "layers": [_descriptor(layer_type, layer.packed) for layer in built_layers],
    }
    blobs = (config, *(layer.packed for layer in built_layers))
    return BuiltImage(blobs=_by_digest(blobs), manifests=(_manifest(body),), platform=platform)


def index(images: Iterable[BuiltImage], *, nested: bool = False, docker: bool = False) -> BuiltImage:
    """Build an index (with `docker`, a manifest list) over images, artifacts or other indexes.

    With `nested`, the result is an index over one index over the images. Shared content appears once.
    """
    children = list(images)
    if nested:
        children = [index(children, docker=docker)]
    body = {
        "schemaVersion": 2,
        "mediaType": DOCKER_LIST if docker else OCI_INDEX,
        "manifests": [_child(child) for child in children],
    }
    blobs = {digest: data for child in children for digest, data in child.blobs.items()}
    # A dict keeps the first of equal manifests, so children precede parents.
    below = dict.fromkeys(manifest for child in children for manifest in child.manifests)
    return BuiltImage(blobs=blobs, manifests=(*below, _manifest(body)))


def artifact(
    seed: int,
    *,
    subject: BuiltImage | None = None,
    artifact_type: str = ARTIFACT,
    annotations: Mapping[str, str] | None = None,
) -> BuiltImage:
    """Build an OCI 1.1 artifact: an empty config and one random blob. The artifact can have a `subject`."""
    empty, payload = b"{}", random.Random(f"{seed}/artifact").randbytes(100)
    body: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": _descriptor(OCI_EMPTY, empty),
        "layers": [_descriptor("application/octet-stream", payload)],
    }
    if subject:
        body["subject"] = _child(subject)
    if annotations:
        body["annotations"] = dict(annotations)
    return BuiltImage(blobs=_by_digest((empty, payload)), manifests=(_manifest(body),))


def attestation(seed: int, about: BuiltImage) -> BuiltImage:
    """Build an attestation manifest, as BuildKit puts into an index next to an image."""

    def name_statements(document: dict[str, Any]) -> None:
        document["layers"][0]["mediaType"] = "application/vnd.in-toto+json"

    plain = image(seed, layers=1, platform="unknown/unknown")
    built = with_manifest(plain, name_statements, blobs=plain.blobs)
    pairs = (("vnd.docker.reference.digest", about.root.digest), ("vnd.docker.reference.type", "attestation-manifest"))
    return replace(built, annotations=pairs)


def with_manifest(image: BuiltImage, change: Callable[[dict[str, Any]], object], *, blobs: dict[str, bytes]) -> BuiltImage:
    """Return an image with these blobs and a changed manifest. `change` changes the document of the manifest."""
    body = json.loads(image.manifests[-1].raw)
    change(body)
    return replace(image, blobs=blobs, manifests=(_manifest(body),))


def foreign(seed: int) -> tuple[BuiltImage, str]:
    """Return an image with a non-distributable last layer, which has a URL, and the digest of the layer."""
    built = image(seed, layers=2)
    document = json.loads(built.manifests[-1].raw)
    layer = document["layers"][-1]
    media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    layer |= {"mediaType": media_type, "urls": ["https://elsewhere.example/layer"]}
    raw = json.dumps(document).encode()
    return replace(built, manifests=(Manifest(digest_of(raw), OCI_MANIFEST, raw),)), layer["digest"]


def load(fake: ContentReceiver, repository: str, image: BuiltImage, tag: str | None = None) -> None:
    """Put an image into a fake registry, without HTTP. The root gets the tag."""
    for data in image.blobs.values():
        fake.put_blob(repository, data)
    for manifest in image.manifests:
        is_root = manifest.digest == image.root.digest
        fake.put_manifest(repository, manifest.raw, manifest.media_type, tag=tag if is_root else None)


def push(
    host: str, repository: str, image: BuiltImage, tag: str | None = None, *, login: tuple[str, str] | None = None
) -> None:
    """Push an image to a real registry over plain HTTP: the blobs, then the manifests. The root gets the tag.

    Args:
        host: "ADDRESS:PORT".
        repository: name without host and tag, for instance "demo/app".
        image: the image to push.
        tag: without a tag, only the digest names the root.
        login: user and password for HTTP basic authentication.

    Raises:
        RuntimeError: the registry refused a request; the message has the response.
    """
    connection = http.client.HTTPConnection(host, timeout=_TIMEOUT_S)
    client = _Uploader(connection, _authorization(login))
    try:
        for digest, data in image.blobs.items():
            client.push_blob(repository, digest, data)
        for manifest in image.manifests:
            name = tag if tag and manifest.digest == image.root.digest else manifest.digest
            path = f"/v2/{repository}/manifests/{name}"
            client.send("PUT", path, manifest.raw, content_type=manifest.media_type)
    finally:
        connection.close()


class _Uploader(NamedTuple):
    """Pushes over one connection, as OCI distribution-spec 1.1 describes, each blob in one piece."""

    connection: http.client.HTTPConnection
    headers: dict[str, str]

    def push_blob(self, repository: str, digest: str, data: bytes) -> None:
        location = urlsplit(self.send("POST", f"/v2/{repository}/blobs/uploads/"))
        query = f"{location.query}&digest={digest}" if location.query else f"digest={digest}"
        self.send("PUT", f"{location.path}?{query}", data)

    def send(self, method: str, path: str, body: bytes = b"", *, content_type: str = "application/octet-stream") -> str:
        """Send a request that must succeed. Return the Location of the response, or "" without a Location."""
        self.connection.request(method, path, body, {**self.headers, "Content-Type": content_type})
        response = self.connection.getresponse()
        answer = response.read()  # the connection can be used again only after the whole response
        if response.status not in (201, 202):
            raise RuntimeError(f"{method} {path}: {response.status} {answer.decode(errors='replace')}")
        return response.headers.get("Location", "")


def _authorization(login: tuple[str, str] | None) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(":".join(login).encode()).decode()} if login else {}


def _layer(seed: str, size: int) -> _Layer:
    """Pack one random file of `size` bytes. Times are fixed, so the bytes depend only on the seed and the size."""
    entry = tarfile.TarInfo(f"data/{seed}")
    entry.size = size
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(entry, io.BytesIO(random.Random(seed).randbytes(size)))
    unpacked = archive.getvalue()
    level = 0 if size >= _LARGE_BYTES else 9  # the attempt to compress random data takes most of the time
    return _Layer(packed=gzip.compress(unpacked, level, mtime=0), diff_id=digest_of(unpacked))


def _config(platform: str, diff_ids: list[str]) -> bytes:
    return _json({**_platform(platform), "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})


def _platform(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _child(child: BuiltImage) -> dict[str, Any]:
    digest, media_type, size = child.root
    platform = {"platform": _platform(child.platform)} if child.platform else {}
    annotations = {"annotations": dict(child.annotations)} if child.annotations else {}
    return {"mediaType": media_type, "digest": digest, "size": size, **platform, **annotations}


def _manifest(body: dict[str, Any]) -> Manifest:
    raw = _json(body)
    return Manifest(digest_of(raw), body["mediaType"], raw)


def _by_digest(blobs: Iterable[bytes]) -> dict[str, bytes]:
    return {digest_of(data): data for data in blobs}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode()
