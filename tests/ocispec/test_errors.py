"""Tests of the tree of errors: base classes, retryability, and fields that survive pickling and copying."""

import copy
import importlib
import pickle
from collections.abc import Callable, Iterator

import pytest

from prefect_dist.mirror.run_result import RunFailed, RunStopped, RunSummary
from prefect_dist.ocispec import errors
from prefect_dist.ocispec.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    Corrupt,
    Denied,
    DistError,
    InvalidInput,
    Mistakes,
    NotFound,
    Unavailable,
    Unsupported,
)
from prefect_dist.remotes.errors import (
    CredentialsRefused,
    Exchange,
    RegistryDenied,
    RegistryError,
    RegistryNotFound,
    RegistryRefused,
    RegistryUnavailable,
)
from prefect_dist.storage.archive.related import ReferrersBeyondLimits
from prefect_dist.storage.errors import StoreFull
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.gate import GateFailed
from tests import source

DECLARED = source.find_subclasses(source.read_modules(), "DistError")
for _module in sorted(set(DECLARED.values())):
    importlib.import_module(_module)

EXCHANGE = Exchange(method="GET", url="https://h/v2/", status=429, codes=("TOOMANYREQUESTS: slow down",), retry_after_s=1.5)
TEXT = "blob sha256:…: expected 7 bytes, got 6"

# class, retryable, other base classes
CLASSES: list[tuple[type[DistError], bool, tuple[type[Exception], ...]]] = [
    (DistError, False, ()),
    (InvalidInput, False, (ValueError,)),
    (Mistakes, False, (InvalidInput, ValueError)),
    (NotFound, False, (LookupError,)),
    (AlreadyExists, False, ()),
    (Busy, True, ()),
    (Unavailable, True, ()),
    (Corrupt, True, ()),
    (Denied, False, ()),
    (Conflict, False, ()),
    (Unsupported, False, ()),
    (StoreFull, False, (Unavailable,)),
    (RegistryError, False, ()),
    (RegistryNotFound, False, (RegistryError, NotFound, LookupError)),
    (RegistryDenied, False, (RegistryError, Denied)),
    (CredentialsRefused, False, (RegistryDenied, Denied)),
    (RegistryUnavailable, True, (RegistryError, Unavailable)),
    (RegistryRefused, False, (RegistryError, InvalidInput, ValueError)),
    (ReferrersBeyondLimits, False, (InvalidInput,)),
    (Stopped, False, ()),
    (GateFailed, False, ()),
    (RunFailed, False, ()),
    (RunStopped, False, (RunFailed, Stopped)),
]


def subclasses(kind: type[DistError]) -> Iterator[type[DistError]]:
    """Return a class and its distinct descendants in the packages of this program."""
    if kind.__module__.partition(".")[0] == source.TOP:
        yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


FAMILY = list(dict.fromkeys(subclasses(DistError)))
TRIPS: dict[str, Callable[[DistError], DistError]] = {
    **{f"pickle {p}": lambda error, p=p: pickle.loads(pickle.dumps(error, p)) for p in range(2, 6)},  # type: ignore[misc]  # noqa: S301
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def make_error(kind: type[DistError]) -> DistError:
    if issubclass(kind, RunFailed):
        return kind(RunSummary(status="failed", tasks=1, seconds=1.5, message=TEXT, summary="0 of 1", counts={"failed": 1}))
    return kind(TEXT, EXCHANGE) if issubclass(kind, RegistryError) else kind(TEXT)


def test_the_table_has_every_error_class() -> None:
    assert {kind.__name__ for kind in FAMILY} == DECLARED.keys() | {"DistError"}
    assert {kind for kind, _, _ in CLASSES} <= set(FAMILY)
    assert {name for name, module in DECLARED.items() if module.startswith(("ocispec", "storage", "remotes", "tasks"))} <= {
        kind.__name__ for kind, _, _ in CLASSES
    }


@pytest.mark.parametrize(("kind", "retryable", "bases"), CLASSES)
def test_the_base_classes_and_retryability_of_each_error(
    kind: type[DistError],
    retryable: bool,  # noqa: FBT001
    bases: tuple[type[Exception], ...],
) -> None:
    assert kind.retryable is retryable
    assert make_error(kind).retryable is retryable
    assert all(issubclass(kind, base) for base in bases)


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("trip", TRIPS.values(), ids=TRIPS)
def test_an_error_keeps_its_fields_when_it_is_pickled(kind: type[DistError], trip: Callable[[DistError], DistError]) -> None:
    error = make_error(kind)
    error.add_note("note")
    returned = trip(error)
    assert type(returned) is kind
    assert (str(returned), returned.args) == (TEXT, error.args)
    assert vars(returned) == vars(error)
    assert "__notes__" in vars(returned)


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if issubclass(kind, RegistryError)])
def test_an_error_keeps_the_facts_of_its_http_exchange_when_it_is_pickled(kind: type[RegistryError]) -> None:
    returned = pickle.loads(pickle.dumps(kind(TEXT, EXCHANGE)))  # noqa: S301
    assert returned.exchange == EXCHANGE
    assert returned.exchange.retry_after_s == 1.5


def test_the_tree_in_the_module_docstring_matches_the_classes() -> None:
    lines = {
        words[1]: line for line in (errors.__doc__ or "").splitlines() if (words := line.split())[:1] in (["├──"], ["└──"])
    }
    direct = {kind for kind in DistError.__subclasses__() if kind.__module__ == "prefect_dist.ocispec.errors"}
    assert lines.keys() == {kind.__name__ for kind in direct}
    assert {name for name, line in lines.items() if line.endswith(" retryable")} == {
        kind.__name__ for kind in direct if kind.retryable
    }
    assert {name for name, line in lines.items() if "(also a" in line} == {"InvalidInput", "NotFound"}


def test_many_mistakes_are_all_in_lines_and_some_in_the_message() -> None:
    mistakes = Mistakes(*map(str, range(7)))
    assert str(mistakes) == "0; 1; 2; 3; 4 (and 2 more)"
    assert copy.copy(mistakes).lines == mistakes.lines == tuple(map(str, range(7)))


def test_a_pickled_error_keeps_subject_and_cause() -> None:
    error = pickle.loads(pickle.dumps(NotFound("gone (GET /x)", subject="a.example/x:1", cause="gone")))  # noqa: S301 - ours
    assert (str(error), error.message, error.subject, error.cause) == (
        "a.example/x:1: gone (GET /x)",
        "gone (GET /x)",
        "a.example/x:1",
        "gone",
    )
