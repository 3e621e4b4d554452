"""The names of the entries of an archive, and the names of images in its lists.

An archive is an OCI image layout (image-spec 1.1, image-layout.md) with containerd's annotation for full image names. It may
also, or only, contain Docker's `manifest.json`: a list of {Config, RepoTags, Layers}, where Config and Layers name entries.
"""

import re
from contextlib import suppress

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from prefect_dist.ocispec.image_layout import CONTAINERD_NAME, REF_NAME
from prefect_dist.ocispec.reference import expand

DOCKER_LIST = "manifest.json"

# blob   ::= "blobs/" algorithm "/" hex
# config ::= sha256-hex ".json" (docker, skopeo) | "sha256:" sha256-hex (go-containerregistry)
_BLOB = re.compile(r"blobs/([^/]+)/([^/]+)")
_CONFIG = re.compile(r"([a-f0-9]{64})\.json|sha256:([a-f0-9]{64})")
# Other entries that a `manifest.json` may name: `ID/layer.tar` (docker), `HEX.tar` (skopeo), `HEX.tar.gz` and `config.json`
# (builders).
_NAMED = re.compile(r".*\.(?:json|tar|tar\.gz|tgz)")


def blob_entry(digest: Digest) -> str:
    """Return the name of the entry of a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def digest_of(entry: str) -> Digest | None:
    """Return the digest in the name of an entry; None if the name has no digest."""
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


def image_name(descriptor: Descriptor) -> str | None:
    """Return the full name of an image in an index; None if the index has only a tag, such as `latest`, or no name."""
    annotations = dict(descriptor.annotations)
    for text in (annotations.get(CONTAINERD_NAME, ""), annotations.get(REF_NAME, "")):
        if ":" in text or "/" in text:
            with suppress(InvalidInput):
                return expand_name(text)
    return None


def repository_and_tag(descriptor: Descriptor) -> tuple[str | None, str | None]:
    """Return the repository and the tag of a manifest in an index. A tag without a name has no repository. Both may be None."""
    if (name := image_name(descriptor)) is not None:
        reference = Reference.parse(name)
        return reference.locator, reference.tag
    annotations = dict(descriptor.annotations)
    return None, annotations.get(REF_NAME) or annotations.get(CONTAINERD_NAME) or None


def expand_name(text: str) -> str:
    """Expand a short name as Docker does.

    Raises:
        InvalidInput: not a valid name.
    """
    return str(Reference.parse(expand(text)))
