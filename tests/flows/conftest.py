"""Fixtures of the tests of flows: mirrors, source and target registries, and deployments with a worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.flows.deploying import deploy_all
from tests.flows.mirrors import DirectMirrors, Mirrors
from tests.peers.prefect import PrefectServer


@pytest.fixture
def mirrors(request: pytest.FixtureRequest, tmp_path: Path) -> Mirrors:
    """Mirrors on the thread pool, or as flow runs in a test that also uses a Prefect server."""
    for name in ("prefect", "server"):
        if name in request.fixturenames:
            return Mirrors(tmp_path, request.getfixturevalue(name))
    return DirectMirrors(tmp_path)


@pytest.fixture(scope="session")
def server(prefect: PrefectServer, home: Path) -> Iterator[PrefectServer]:
    """The Prefect server, with all deployments and a worker for them. The start takes 15 s."""
    with deploy_all(prefect, home / "worker"):
        yield prefect


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        yield source


@pytest.fixture
def target() -> Iterator[FakeRegistry]:
    with FakeRegistry() as target:
        yield target


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with FakeRegistry() as other:
        yield other
