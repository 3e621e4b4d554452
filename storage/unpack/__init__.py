"""Unpacking: creates a directory with the root file system of an image in the content store (image-spec 1.1, layer.md).

image    selects the manifest, checks the image first, and publishes the directory at the end
layers   decompress and verify the bytes of each layer
entries  parse the tar archive of a layer, with `storage.tarreader`
rootfs   applies the entries to the directory
tree, inodes  change files by open handles, never outside of the directory
"""

from prefect_dist.storage.unpack.image import Unpacked, unpack

__all__ = ["Unpacked", "unpack"]
