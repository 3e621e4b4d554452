"""Installs plug-ins for tests: a module, and the metadata of a package with its entry points."""

import sys
import textwrap
from pathlib import Path

import pytest

from prefect_dist.ocispec import schemes

# A remote with one image, whose root is the manifest RAW. Tests append or replace methods.
REMOTE = """
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.remotes import Remote, Source

RAW = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
ROOT = Descriptor(media_type="application/vnd.oci.image.index.v1+json", digest=Digest.of(RAW), size=len(RAW))


class OneImage(Source):
    def resolve(self, reference, *, media_type=None):
        return ROOT

    def fetch(self, descriptor, *, offset=0):
        yield RAW[offset:]


class OneImageRemote(Remote):
    source = OneImage

    def open_source(self, reference):
        return self.source()


def make(context):
    return OneImageRemote()
"""


def write_plugin(
    directory: Path, code: str, *, points: str = "pin = broken:make", package: str = "dist-broken", version: str = "1.2"
) -> None:
    """Write a package with the module `broken` to a directory, as an installer does. `points` are its entry points."""
    directory.mkdir(exist_ok=True)
    metadata = directory / f"{package.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[{schemes.GROUP}]\n{points}\n")
    if module := points.partition("=")[2].partition(":")[0].strip():
        (directory / f"{module}.py").write_text(textwrap.dedent(code))


def use_plugins(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find the plug-ins of a directory until the end of the test. Call this again after each installation."""
    monkeypatch.syspath_prepend(str(directory))
    for module in [path.stem for path in directory.glob("*.py")]:
        monkeypatch.delitem(sys.modules, module, raising=False)
    schemes.find_plugins.cache_clear()
