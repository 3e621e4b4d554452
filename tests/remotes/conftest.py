from collections.abc import Iterator

import pytest

from prefect_dist.remotes import Registries
from tests.fakes.registry import FakeRegistry
from tests.remotes.asking import SETTINGS, anonymous


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """A registry without authentication."""
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    """A second registry at the same address and another port, for redirects."""
    with FakeRegistry() as other:
        yield other


@pytest.fixture
def registries() -> Iterator[Registries]:
    """All registries, without credentials."""
    with Registries(SETTINGS, credentials=anonymous) as registries:
        yield registries
