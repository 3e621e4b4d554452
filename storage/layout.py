"""Where things are in a store: an OCI image layout (image-spec 1.1, image-layout.md), and beside it `ingest/` and `names/`.

oci-layout  index.json  blobs/<algorithm>/<hex>
ingest/<sha256 of the ref>  ingest/<sha256 of the ref>.json
names/<readable part>-<sha256 of the name>.json
"""

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import quote

from ocispec import Digest
from ocispec.errors import InvalidInput, Unsupported

_KEY = re.compile(r"[a-f0-9]{64}")
# A file name has at most 255 bytes on common systems: 120 of the name, a dash, 64 of its hash and `.json`, and while it is
# written 37 more that make it unique.
_READABLE = 120


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below `root`, a path of the store's file system."""

    root: str

    @property
    def marker(self) -> str:
        """The file that makes a directory an OCI image layout."""
        return f"{self.root}/oci-layout"

    @property
    def index(self) -> str:
        """The list of names that other tools read."""
        return f"{self.root}/index.json"

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
    def lock(self) -> str:
        """The lock under which `index` is replaced."""
        return f"{self.root}/names/index.lock"

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
        """Whether this is the path of some ingest's data file."""
        return _KEY.fullmatch(path.removeprefix(f"{self.ingests}/")) is not None

    def name(self, name: str) -> str:
        """The record of a name: readable for whoever looks around, unambiguous by its hash, never too long."""
        key = _hash(name)
        return f"{self.names}/{quote(name, safe='')[:_READABLE]}-{key}.json"


def _hash(text: str) -> str:
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as exc:
        raise InvalidInput(f"{text!a}: not Unicode text") from exc
