"""What the tests of mirrors share: one that can be run, and registries to mirror from and to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors
from tests.peers.prefect import PrefectServer


@pytest.fixture
def mirrors(prefect: PrefectServer, tmp_path: Path) -> Mirrors:
    return Mirrors(tmp_path, prefect)


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
