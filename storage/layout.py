"""The paths in a store: those of an OCI image layout (image-spec 1.1, image-layout.md), and the paths that this program adds.

oci-layout  index.json  index.names.json  blobs/<algorithm>/<hex>
ingest/<sha256 of the ref>  ingest/<sha256 of the ref>.json
names/<readable part>-<sha256 of the name>.json
leases/<run>.<number>.json  leases/<run>.lock  sweeps/<batch>.gc  quarantine/<algorithm>/<hex>
runs/<run>/<file>  claims/<group>/<algorithm>-<hex>
"""

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import InvalidInput, Unsupported

# The suffix of the record of an ingest, next to its data file.
RECORD = ".json"
# The suffix of a small file that is being written.
TEMPORARY = ".new"
_KEY = re.compile(r"[a-f0-9]{64}")
# A small file, its lock, and the temporary file that replaces it.
_SUFFIXES = rf"(\.lock|\.[a-f0-9]+{re.escape(TEMPORARY)})?"
_RUN_FILE = re.compile(rf"(alive|(shard|result|alive)-[0-9]+)\.json{_SUFFIXES}")
_CLAIM = re.compile(rf"(sha256-[a-f0-9]{{64}}|sha512-[a-f0-9]{{128}}){_SUFFIXES}")
# Common systems limit a file name to 255 bytes: 120 of the name, a dash, 64 of its hash, `.json`, and 37 more that make the
# name unique while the file is written.
_READABLE = 120
_MAX_GROUP = 200


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below `root`, a path on the store's file system. `scheme` turns a path into a URL; it is empty on a disk."""

    root: str
    scheme: str = ""

    @property
    def url(self) -> str:
        """The location of the store as users write it."""
        return self.format_path(self.root)

    def format_path(self, path: str) -> str:
        """Return a path as users write it: a URL, or on a disk the path."""
        return f"{self.scheme}{path}"

    @property
    def marker(self) -> str:
        """Path of the file that marks an OCI image layout."""
        return f"{self.root}/oci-layout"

    @property
    def index(self) -> str:
        """Path of the list of images for other tools."""
        return f"{self.root}/index.json"

    @property
    def index_names(self) -> str:
        """Path of the cache of names from which the index was made, each with the version of its record."""
        return f"{self.root}/index.names.json"

    @property
    def blobs(self) -> str:
        """Path of the directory of blobs, by algorithm."""
        return f"{self.root}/blobs"

    @property
    def ingests(self) -> str:
        """Path of the directory of ingests."""
        return f"{self.root}/ingest"

    @property
    def names(self) -> str:
        """Path of the directory of names."""
        return f"{self.root}/names"

    @property
    def leases(self) -> str:
        """Path of the directory of leases."""
        return f"{self.root}/leases"

    @property
    def sweeps(self) -> str:
        """Path of the directory of gc's markers, for stores without locks."""
        return f"{self.root}/sweeps"

    @property
    def quarantine(self) -> str:
        """Path of the directory of corrupt blobs, by algorithm."""
        return f"{self.root}/quarantine"

    @property
    def claims(self) -> str:
        """Path of the directory of claims on content that a process transfers."""
        return f"{self.root}/claims"

    def claim(self, group: str, digest: Digest) -> str:
        """Return the path of the claim of a group on content. A long group, such as the path of an image layout, is hashed."""
        quoted = quote(group, safe="")
        return f"{self.claims}/{quoted if len(quoted) <= _MAX_GROUP else _hash(group)}/{digest.algorithm}-{digest.hex}"

    @property
    def runs(self) -> str:
        """Path of the directory of runs that several processes carry out."""
        return f"{self.root}/runs"

    def run(self, run: str) -> str:
        """Return the path of the directory with the files of a run that several processes carry out."""
        return f"{self.runs}/{run}"

    def is_claim(self, path: str) -> bool:
        """Return True for the path of a file in the directory of a group of claims that this program writes."""
        return _CLAIM.fullmatch(path.rpartition("/")[2]) is not None

    def is_run_file(self, path: str) -> bool:
        """Return True for the path of a file in the directory of a run that this program writes."""
        return _RUN_FILE.fullmatch(path.rpartition("/")[2]) is not None

    @property
    def lock(self) -> str:
        """Path of the lock by which gc and runs exclude each other."""
        return f"{self.root}/sweep.lock"

    def lease_lock(self, run: str) -> str:
        """Return the path of the lock of a run with leases, held while the run is alive."""
        return f"{self.leases}/{run}.lock"

    def quarantine_path(self, digest: Digest) -> str:
        """Return the path in quarantine for a blob whose bytes do not match `digest`."""
        return f"{self.quarantine}/{digest.algorithm}/{digest.hex}"

    def blob(self, digest: Digest) -> str:
        """Return the path of a blob."""
        return f"{self.root}/blobs/{digest.algorithm}/{digest.hex}"

    def digest(self, path: str) -> Digest | None:
        """Return the digest of the blob at a path; None if the path is not that of a blob."""
        algorithm, _, encoded = path.removeprefix(f"{self.blobs}/").partition("/")
        try:
            return Digest.parse(f"{algorithm}:{encoded}")
        except (InvalidInput, Unsupported):
            return None

    def ingest(self, ref: str) -> str:
        """Return the path of the data file of an ingest."""
        return f"{self.ingests}/{_hash(ref)}"

    def is_ingest(self, path: str) -> bool:
        """Return True for the path of the data file of an ingest."""
        return _KEY.fullmatch(path.removeprefix(f"{self.ingests}/")) is not None

    def name(self, name: str) -> str:
        """Return the path of the record of a name: readable for people, unique by its hash, and limited in length."""
        key = _hash(name)
        return f"{self.names}/{quote(name, safe='')[:_READABLE]}-{key}.json"

    def parse_name(self, path: str) -> str | None:
        """Return the name in the path of a record; None for other files, and for names with only a part in the path."""
        name = unquote(path.removeprefix(f"{self.names}/").rpartition("-")[0])
        return name if self.name(name) == path else None


def _hash(text: str) -> str:
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as exc:
        raise InvalidInput(f"{text!a}: expected valid Unicode text") from exc
