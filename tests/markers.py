"""Marks each test by the servers and programs that it needs, so that `pytest -m` can leave them out.

The marks follow from the code; tests do not set them. A test needs a peer if the code of the test names the function that
starts the peer. The code of a test includes its fixtures and the functions of `tests` that the test calls.
"""

from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from tests.cli.dist import command, dist
from tests.peers.chromium import chromium
from tests.peers.prefect import prefect_server
from tests.peers.processes import require
from tests.peers.registry import cncf_registry
from tests.peers.seaweedfs import seaweedfs

MARKERS = {
    "prefect": "needs a Prefect server",
    "registry": "needs a real registry",
    "s3": "needs an S3 server",
    "browser": "needs Chromium",
    "process": "starts another program, such as `dist` or skopeo",
}
_STARTERS: dict[Callable[..., Any], str] = {
    prefect_server: "prefect",
    cncf_registry: "registry",
    seaweedfs: "s3",
    chromium: "browser",
    require: "process",
    command: "process",
    dist: "process",
}


def mark_by_peers(item: pytest.Item) -> None:
    """Add a mark to a test for each server and program that the test needs."""
    assert isinstance(item, pytest.Function)
    found = set(_marks_of(item.function))
    if hasattr(item, "callspec") and "s3" in item.callspec.params.values():  # such a test starts the server inside the test
        found.add("s3")
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        found |= _marks_of(definitions[-1].func)
    for name in found:
        item.add_marker(name)
    # One process of pytest-xdist runs all tests of a group. A Prefect server costs 7 s of CPU time to start and 2 % of a core.
    if "server" in item.fixturenames:
        item.add_marker(pytest.mark.xdist_group("deployments"))
    elif "prefect" in item.fixturenames:  # two groups, because a single one would take longer than all other tests
        item.add_marker(pytest.mark.xdist_group("flows" if item.path.parent.name == "flows" else "prefect"))
    elif "s3" in found and item.get_closest_marker("xdist_group") is None:  # an S3 server costs 10 s of CPU time
        item.add_marker(pytest.mark.xdist_group("s3"))


@cache
def _marks_of(function: Callable[..., Any]) -> frozenset[str]:
    pending, seen, found = [function], set[object](), set[str]()
    while pending:
        code = pending.pop()
        code = getattr(code, "__wrapped__", code)
        code = code.hypothesis.inner_test if hasattr(code, "hypothesis") else code
        if code in seen:
            continue
        seen.add(code)
        if (mark := _mark_of(code)) is not None:
            found.add(mark)
        elif isinstance(code, FunctionType):
            pending += _functions_named_in(code)
        elif isinstance(code, type):
            pending += [member for member in vars(code).values() if isinstance(member, FunctionType)]
    return frozenset(found)


def _mark_of(function: object) -> str | None:
    for starter, mark in _STARTERS.items():
        if function in (starter, getattr(starter, "__wrapped__", starter)):
            return mark
    return None


def _functions_named_in(function: FunctionType) -> Iterator[Any]:
    """Yield the functions and classes of `tests` that the code of a function names, directly or as a member of a module."""
    names = _names_in(function.__code__)
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    for module in [value for value in values if isinstance(value, ModuleType)]:
        values += [vars(module)[name] for name in names if name in vars(module)]
    for value in values:
        if isinstance(value, FunctionType | type) and value.__module__.startswith("tests."):
            yield value


def _names_in(code: CodeType) -> set[str]:
    nested = (_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*nested)
