"""The content store: an OCI image layout on any supported fsspec file system, with resumable ingests and names.

The store is synchronous and thread-safe. Content becomes visible only when it is whole, verified and durable (see
`storage.ingest` and `storage.backend`).
"""

from prefect_dist.storage.errors import StoreFull
from prefect_dist.storage.ingest import Status, Writer
from prefect_dist.storage.names import Name
from prefect_dist.storage.store import ContentStore, Info, open_store

__all__ = ["ContentStore", "Info", "Name", "Status", "StoreFull", "Writer", "open_store"]
