"""Fixtures: a session, and a fake registry as the target of a mirror or a push."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.transfer.session import Session, SessionSpec, open_session
from tests.fakes.registry import FakeRegistry


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    spec = SessionSpec(store=str(tmp_path / "store"))
    with open_session(spec) as session:
        yield session


@pytest.fixture
def target() -> Iterator[FakeRegistry]:
    with FakeRegistry() as target:
        yield target
