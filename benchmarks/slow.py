"""Fetch a blob of 256 MB from a server that limits each connection to 8 MB/s (`make bench`).

The fetches use one connection, several connections with a part of the blob each, and skopeo, without Prefect. In each round
the three fetches run one after the other. The bar applies to the medians of the ratios. The exit status is 1 if the bar
is missed.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.fetch import Case, meets_bar, repository_of
from prefect_dist.ocispec import Reference
from prefect_dist.remotes import Hosts, HostSettings, RegistrySettings
from prefect_dist.transfer.session import SessionSpec, open_session
from tests.peers.nginx import put, static_registry
from tests.peers.processes import require
from tests.transfer.content import fetch_tree

ROUNDS = 3
BAR = 4.0
_MB = 1_000_000
BIG = Case("256 MB in one layer", manifests=1, layers=1, layer_bytes=256 * _MB)


def main() -> None:
    """Measure, and compare with the bars."""
    with (
        tempfile.TemporaryDirectory(dir=".") as scratch,
        static_registry(Path(scratch) / "registry", bytes_per_second=8 * _MB) as registry,
    ):
        put(Path(scratch) / "registry", repository_of(BIG), BIG.build(), "v1")
        reference = f"{registry.host}/{repository_of(BIG)}:v1"
        one, divided, skopeo = [], [], []
        for _ in range(ROUNDS):
            one.append(_measure(lambda to: _fetch(reference, to, HostSettings(avoid=frozenset({"range"}))), scratch))
            divided.append(_measure(lambda to: _fetch(reference, to, HostSettings()), scratch))
            skopeo.append(_measure(lambda to: _copy_by_skopeo(reference, to), scratch))
        for name, seconds in (("one connection", one), ("several connections", divided), ("skopeo", skopeo)):
            print(f"{BIG.name} at 8 MB/s per connection, {name}: {min(seconds):.1f} to {max(seconds):.1f} s")
        verdicts = [
            meets_bar(f"{name} / several connections", [a / b for a, b in zip(slow, divided, strict=True)], BAR, at_least=True)
            for name, slow in (("one connection", one), ("skopeo", skopeo))
        ]
    sys.exit(not all(verdicts))


def _measure(work: Callable[[Path], None], scratch: str) -> float:
    target = Path(scratch) / "target"
    start = time.perf_counter()
    work(target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def _fetch(name: str, store: Path, settings: HostSettings) -> None:
    reference = Reference.parse(name)
    hosts = Hosts(named={reference.host: settings})
    with open_session(SessionSpec(store=str(store), registries=RegistrySettings(hosts=hosts))) as session:
        fetch_tree(session, reference, session.open_source(reference).resolve(reference), workers=4)


def _copy_by_skopeo(name: str, target: Path) -> None:
    argv = [require("skopeo", "skopeo"), "--insecure-policy", "copy", "--src-tls-verify=false", f"docker://{name}"]
    subprocess.run([*argv, f"dir:{target}"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
