"""The names of an archive's entries, and the names of images in its lists.

OCI image layout (image-spec 1.1, image-layout.md), with the annotation by which containerd finds whole names. Beside it, or
alone, `manifest.json` as `docker save` writes it: a list of {Config, RepoTags, Layers}, where Config and Layers name entries.
"""

import re
from contextlib import suppress

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from prefect_dist.ocispec.reference import expand
from prefect_dist.storage.index import REF_NAME

MARKER = "oci-layout"
INDEX = "index.json"
DOCKER_LIST = "manifest.json"
CONTAINERD_NAME = "io.containerd.image.name"
NAMES = (REF_NAME, CONTAINERD_NAME)
"""The annotations in which an index names its images. skopeo looks at the first, containerd at the second before the first."""

# blob   ::= "blobs/" algorithm "/" hex
# config ::= sha256-hex ".json" (docker, skopeo) | "sha256:" sha256-hex (go-containerregistry)
_BLOB = re.compile(r"blobs/([^/]+)/([^/]+)")
_CONFIG = re.compile(r"([a-f0-9]{64})\.json|sha256:([a-f0-9]{64})")
# What else a `manifest.json` may name: `ID/layer.tar` (docker), `HEX.tar` (skopeo), `HEX.tar.gz` and `config.json` (builders).
_NAMED = re.compile(r".*\.(?:json|tar|tar\.gz|tgz)")


def blob_entry(digest: Digest) -> str:
    """The entry that holds a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def digest_of(entry: str) -> Digest | None:
    """The digest that an entry's name promises; None where it says nothing."""
    if match := _BLOB.fullmatch(entry):
        try:
            return Digest.parse(f"{match[1]}:{match[2]}")
        except (InvalidInput, Unsupported):
            return None
    match = _CONFIG.fullmatch(entry)
    return Digest("sha256", match[1] or match[2]) if match else None


def is_content(entry: str) -> bool:
    """Return True if an entry may be part of an image. Names with control characters never are."""
    return entry.isprintable() and (digest_of(entry) is not None or _NAMED.fullmatch(entry) is not None)


def name_of(descriptor: Descriptor) -> str | None:
    """The whole name that an index gives an image; None where it has none. A lone word, such as `latest`, is a mere tag."""
    annotations = dict(descriptor.annotations)
    for text in (annotations.get(CONTAINERD_NAME, ""), annotations.get(REF_NAME, "")):
        if ":" in text or "/" in text:
            with suppress(InvalidInput):
                return whole(text)
    return None


def place_of(descriptor: Descriptor) -> tuple[str | None, str | None]:
    """The repository and tag that an index gives a manifest. A mere tag has no repository; other texts are neither."""
    if (name := name_of(descriptor)) is not None:
        reference = Reference.parse(name)
        return reference.locator, reference.tag
    annotations = dict(descriptor.annotations)
    return None, annotations.get(REF_NAME) or annotations.get(CONTAINERD_NAME) or None


def whole(text: str) -> str:
    """Expand a name as Docker does.

    Raises:
        InvalidInput: it is none.
    """
    return str(Reference.parse(expand(text)))
