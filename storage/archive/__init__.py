"""Images in files: an OCI image layout in a tar stream (image-spec 1.1, image-layout.md), and Docker's older format.

This package is synchronous. Streams need not be seekable, so standard input and output work. The name of an entry is never used
as a path on the disk.
"""

from prefect_dist.storage.archive.reading import Imported, import_images
from prefect_dist.storage.archive.writing import export_images

__all__ = ["Imported", "export_images", "import_images"]
