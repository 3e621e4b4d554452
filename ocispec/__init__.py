"""Values and grammar of OCI and Docker distribution: references, digests, descriptors, manifests, platforms, errors.

No I/O and no Prefect: everything here can be read and tested alone. Follows image-spec 1.1 and distribution-spec 1.1.
"""

from prefect_dist.ocispec.descriptor import Descriptor
from prefect_dist.ocispec.digest import Digest, Hasher
from prefect_dist.ocispec.platform import Platform
from prefect_dist.ocispec.reference import Reference

__all__ = ["Descriptor", "Digest", "Hasher", "Platform", "Reference"]
