"""The paths in a store: those of an OCI image layout (image-spec 1.1, image-layout.md), and our own.

oci-layout  index.json  index.names.json  blobs/<algorithm>/<hex>
ingest/<sha256 of the ref>  ingest/<sha256 of the ref>.json
names/<readable part>-<sha256 of the name>.json
leases/<run>.<number>.json  leases/<run>.lock  sweeps/<batch>.gc  quarantine/<algorithm>/<hex>
"""

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import InvalidInput, Unsupported

# Beside the data of an ingest: its record.
RECORD = ".json"
# What a small file is called while it is written.
TEMPORARY = ".new"
_KEY = re.compile(r"[a-f0-9]{64}")
# A file name has at most 255 bytes on common systems: 120 of the name, a dash, 64 of its hash and `.json`, and while it is
# written 37 more that make it unique.
_READABLE = 120


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below `root`, a path of the store's file system; `scheme` is what makes one a URL, nothing on a disk."""

    root: str
    scheme: str = ""

    @property
    def url(self) -> str:
        """The store as people name it."""
        return self.format_path(self.root)

    def format_path(self, path: str) -> str:
        """A path of the file system as people name it: a URL, or on a disk the path."""
        return f"{self.scheme}{path}"

    @property
    def marker(self) -> str:
        """The file that makes a directory an OCI image layout."""
        return f"{self.root}/oci-layout"

    @property
    def index(self) -> str:
        """The list of names that other tools read."""
        return f"{self.root}/index.json"

    @property
    def index_names(self) -> str:
        """The names that the index was made from, each with the version of its record."""
        return f"{self.root}/index.names.json"

    @property
    def blobs(self) -> str:
        """All blobs, by algorithm."""
        return f"{self.root}/blobs"

    @property
    def ingests(self) -> str:
        """All ingests."""
        return f"{self.root}/ingest"

    @property
    def names(self) -> str:
        """All names."""
        return f"{self.root}/names"

    @property
    def leases(self) -> str:
        """The directory of leases of active runs."""
        return f"{self.root}/leases"

    @property
    def sweeps(self) -> str:
        """The markers of batches that gc is removing, where there are no locks."""
        return f"{self.root}/sweeps"

    @property
    def quarantine(self) -> str:
        """Path of the folder of corrupt blobs, by algorithm."""
        return f"{self.root}/quarantine"

    @property
    def lock(self) -> str:
        """Path of the lock that keeps gc apart from runs that record names."""
        return f"{self.root}/sweep.lock"

    def lease_lock(self, run: str) -> str:
        """The lock that tells whether a run lives that has leases."""
        return f"{self.leases}/{run}.lock"

    def quarantine_path(self, digest: Digest) -> str:
        """Return the path in quarantine for a blob whose bytes do not match `digest`."""
        return f"{self.quarantine}/{digest.algorithm}/{digest.hex}"

    def blob(self, digest: Digest) -> str:
        """The blob of a digest."""
        return f"{self.root}/blobs/{digest.algorithm}/{digest.hex}"

    def digest(self, path: str) -> Digest | None:
        """The digest whose blob has this path; None for a strange file."""
        algorithm, _, encoded = path.removeprefix(f"{self.blobs}/").partition("/")
        try:
            return Digest.parse(f"{algorithm}:{encoded}")
        except (InvalidInput, Unsupported):
            return None

    def ingest(self, ref: str) -> str:
        """The data file of an ingest."""
        return f"{self.ingests}/{_hash(ref)}"

    def is_ingest(self, path: str) -> bool:
        """Return True for the path of an ingest's data file."""
        return _KEY.fullmatch(path.removeprefix(f"{self.ingests}/")) is not None

    def name(self, name: str) -> str:
        """The record of a name: readable for whoever looks around, unambiguous by its hash, never too long."""
        key = _hash(name)
        return f"{self.names}/{quote(name, safe='')[:_READABLE]}-{key}.json"

    def parse_name(self, path: str) -> str | None:
        """Return the name whose record has this path. None for other files, and for names that the path has only in part."""
        name = unquote(path.removeprefix(f"{self.names}/").rpartition("-")[0])
        return name if self.name(name) == path else None


def _hash(text: str) -> str:
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as exc:
        raise InvalidInput(f"{text!a}: not Unicode text") from exc
