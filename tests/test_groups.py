"""pytest-xdist runs the tests of a group in one process, so that they share one server."""

import pytest


@pytest.mark.xdist_group("of_this_test")
def test_pytest_xdist_knows_groups(request: pytest.FixtureRequest) -> None:
    """pytest-xdist 3.8 ignores all groups, without a message, with pytest 9.2 (pytest-xdist#1386)."""
    if request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@of_this_test")
