"""Unpacking: from an image in the content store to a directory with its root file system (image-spec 1.1, layer.md).

ContentStore, root → image: which manifest, what is checked first, when the result appears
→ layers: uncompressed bytes, verified  → storage.tarreader, entries: what a tar archive says
→ rootfs: what that does to a directory  → tree, inodes: by handles, never outside of it
"""

from prefect_dist.storage.unpack.image import Unpacked, unpack

__all__ = ["Unpacked", "unpack"]
