"""Threads that open several remotes for the first time at once."""

import subprocess
import sys
from pathlib import Path

# A new process, because the modules of remotes are imported once per process.
SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from prefect_dist.ocispec import Reference
from prefect_dist.remotes import Registries, RegistrySettings, Remotes, StaticCredentials

def open_store():
    from prefect_dist.storage import open_store
    return open_store(sys.argv[1])

none = StaticCredentials({}).get
texts = ["store:app:v1", "oci-archive:/none.tar", "docker-archive:/none.tar", "oci:/none"] * 4
barrier = Barrier(len(texts))
with Remotes(Registries(RegistrySettings(), credentials=none), credentials=none, open_store=open_store) as remotes:
    def find(text):
        barrier.wait()
        return type(remotes.find(Reference.parse(text))).__name__
    with ThreadPoolExecutor(len(texts)) as threads:
        print(*sorted(set(threads.map(find, texts))))
"""


def test_remotes_with_common_modules_are_opened_at_the_same_time(tmp_path: Path) -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["DockerArchiveRemote", "LayoutRemote", "OciArchiveRemote", "StoreRemote"], done.stderr
