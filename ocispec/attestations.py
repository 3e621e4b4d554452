"""Attestation manifests: how BuildKit puts provenance and bills of materials beside the images of an index.

An index lists them with the platform unknown/unknown and two annotations (moby/buildkit, attestation-storage.md).
"""

from prefect_dist.ocispec.descriptor import Descriptor

_TYPE, _SUBJECT = "vnd.docker.reference.type", "vnd.docker.reference.digest"


def attested(descriptor: Descriptor) -> str | None:
    """Return the digest of the manifest that an attestation manifest is about; None for everything else.

    The annotations are a hint of the index that selects content: they prove nothing about it.
    """
    platform, annotations = descriptor.platform, dict(descriptor.annotations)
    if platform is None or (platform.os, platform.architecture) != ("unknown", "unknown"):
        return None
    return annotations.get(_SUBJECT) if annotations.get(_TYPE) == "attestation-manifest" else None
