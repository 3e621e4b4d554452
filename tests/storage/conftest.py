"""Fixtures for the conformance suite and for tests that give up privileges."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.storage import ContentStore
from tests.storage.conformance import BACKENDS, Place
from tests.storage.layered import NOBODY


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    place = BACKENDS[request.param](request)
    yield place
    place.clear()


@pytest.fixture
def store(place: Place) -> ContentStore:
    return place.open()


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Yield a directory in which a process without privileges can work. Only their owner can enter pytest's own directories."""
    with tempfile.TemporaryDirectory() as place:
        if os.geteuid() == 0:
            os.chown(place, NOBODY, NOBODY)
        Path(place).chmod(0o755)
        yield Path(place)
