"""What all tests share: one registry, one S3 server and one Prefect server for the whole session, and an empty home."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.markers import MARKERS, mark_by_peers
from tests.peers.prefect import PrefectServer, prefect_server
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.peers.seaweedfs import S3Server, seaweedfs

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it needs."""
    for item in items:
        mark_by_peers(item)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of our own: no test sees a person's credentials, Prefect profile or store."""
    directory = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        ours = ("PREFECT_", "DIST_", "DOCKER_", "REGISTRY_AUTH_FILE", "XDG_", "AWS_", "FSSPEC_")
        for name in [name for name in os.environ if name.startswith(ours)]:
            patch.delenv(name)
        patch.setenv("HOME", str(directory))
        patch.setenv("XDG_RUNTIME_DIR", str(directory / "run"))  # unset, /run/containers would be looked at
        patch.setenv("PREFECT_HOME", str(directory / "prefect"))
        patch.setenv("DO_NOT_TRACK", "1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # who has no key is told so, without asking the network
        yield directory


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    """The real CNCF registry; tests use repositories of their own in it."""
    with cncf_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; tests use prefixes of their own in its bucket. Starting it takes 4 s."""
    with seaweedfs(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def prefect(home: Path) -> Iterator[PrefectServer]:
    """A real Prefect server, which flows in this process and commands in others use."""
    with prefect_server(home / "prefect-server") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", server.url)
        yield server
        _drain()


def _drain() -> None:
    """Have what runs in this process still tell arrive, before the server ends; nothing to do where there were none."""
    if "prefect.events.worker" in sys.modules:
        sys.modules["prefect.events.worker"].EventsWorker.drain_all(timeout=30)
