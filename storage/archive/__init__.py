"""Images in files: an OCI image layout in a tar stream (image-spec 1.1, image-layout.md), and what `docker save` wrote before.

Synchronous. Streams need not seek: standard output and input will do. No entry's name ever becomes a path.
"""

from prefect_dist.storage.archive.reading import Imported, import_images
from prefect_dist.storage.archive.writing import export_images

__all__ = ["Imported", "export_images", "import_images"]
