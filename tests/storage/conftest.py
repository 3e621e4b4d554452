"""The fixture through which a test joins the conformance suite."""

from collections.abc import Iterator

import pytest

from storage import ContentStore

pytest.register_assert_rewrite("tests.storage.conformance")

from tests.storage.conformance import BACKENDS, Place  # noqa: E402 - after what makes its assertions speak


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    place = BACKENDS[request.param](request)
    yield place
    place.clear()


@pytest.fixture
def store(place: Place) -> ContentStore:
    return place.open()
