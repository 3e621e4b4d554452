"""Values and grammars of OCI and Docker distribution: references, digests, descriptors, manifests, platforms and errors.

This layer does no I/O and does not use Prefect. It follows image-spec 1.1 and distribution-spec 1.1.
"""

from prefect_dist.ocispec.descriptor import Descriptor
from prefect_dist.ocispec.digest import Digest, Hasher
from prefect_dist.ocispec.platform import Platform
from prefect_dist.ocispec.reference import Reference

__all__ = ["Descriptor", "Digest", "Hasher", "Platform", "Reference"]
