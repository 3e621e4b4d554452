"""Blobs over several connections. The clock of these tests makes any transfer a slow one, divided after its first piece."""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from prefect_dist.ocispec.errors import Corrupt, DistError, Unavailable
from prefect_dist.remotes import Hosts, HostSettings, Registries, RegistrySettings
from prefect_dist.remotes.ranges import PART_BYTES, Ranges
from tests.fakes.faults import (
    Answer,
    Cut,
    Fault,
    IgnoreRange,
    Redirect,
    Reset,
    Response,
    ShiftRange,
    ShortRange,
    Stall,
    Wire,
)
from tests.fakes.registry import FakeRegistry
from tests.remotes.asking import REPOSITORY, anonymous, check_message, descriptor, fetcher, read, read_until_error

BIG = random.Random(7).randbytes(8 * PART_BYTES + 12_345)
WANTED = descriptor(BIG)
BLOBS = ".*/blobs/.*"


class SlowClock:
    """A clock that advances two seconds with each reading."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 2
        return self.now


def opened(registry: FakeRegistry, settings: HostSettings | None = None) -> Registries:
    hosts = Hosts(named={registry.host: settings or HostSettings()})
    found = Registries(RegistrySettings(hosts=hosts, connect_timeout_s=10, read_timeout_s=10), credentials=anonymous)
    found._ranges.close()
    found._ranges = Ranges(clock=SlowClock())
    return found


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.put_blob(REPOSITORY, BIG)
        yield registry


@pytest.fixture
def registries(registry: FakeRegistry) -> Iterator[Registries]:
    with opened(registry) as found:
        yield found
    assert found._ranges._pool.held == 0


def parts(registry: FakeRegistry) -> list[tuple[int, int]]:
    """The requested ranges, in the order of the blob."""
    texts = [one.headers["range"] for one in registry.requests if "range" in one.headers]
    matches = [re.fullmatch(r"bytes=(\d+)-(\d+)", text) for text in texts]
    return sorted((int(match[1]), int(match[2])) for match in matches if match)


def test_the_time_of_a_slow_reader_does_not_divide_a_blob(registry: FakeRegistry) -> None:
    now, pieces = [0.0], list[bytes]()
    with opened(registry) as found:
        found._ranges.close()
        found._ranges = Ranges(clock=lambda: now[0])
        for piece in fetcher(found, registry).fetch(WANTED, offset=0):
            pieces.append(piece)
            now[0] += 60

    assert b"".join(pieces) == BIG
    assert len(pieces) > 1
    assert parts(registry) == []


def test_a_slow_transfer_is_divided(registries: Registries, registry: FakeRegistry) -> None:
    assert read(fetcher(registries, registry), WANTED) == BIG
    found = parts(registry)
    assert len(found) >= 6
    assert all(end + 1 == start for (_, end), (start, _) in pairwise(found))
    assert found[-1][1] == len(BIG) - 1
    assert all(end - start < PART_BYTES for start, end in found)
    (first,) = (one for one in registry.requests if "range" not in one.headers)
    assert first.sent < len(BIG)


def test_a_resumed_transfer_is_divided(registries: Registries, registry: FakeRegistry) -> None:
    assert read(fetcher(registries, registry), WANTED, offset=1_000_001) == BIG[1_000_001:]
    assert parts(registry)[0][0] == 1_000_001


def test_a_fast_transfer_is_one_request(registry: FakeRegistry) -> None:
    with Registries(RegistrySettings(connect_timeout_s=10), credentials=anonymous) as found:
        assert read(fetcher(found, registry), WANTED) == BIG
    assert len(registry.requests) == 1


def test_a_small_blob_is_one_request(registries: Registries, registry: FakeRegistry) -> None:
    small = BIG[: 2 * PART_BYTES]
    registry.put_blob(REPOSITORY, small)
    assert read(fetcher(registries, registry), descriptor(small)) == small
    assert len(registry.requests) == 1


@pytest.mark.parametrize("status", [403, 416, 429, 500, 503])
def test_a_server_that_rejects_ranges_continues_on_the_first_connection(
    registries: Registries, registry: FakeRegistry, status: int
) -> None:
    registry.inject(Fault(path=BLOBS, nth=2, times=100, action=Answer(status, (), b"{}")))
    assert read(fetcher(registries, registry), WANTED) == BIG
    assert sum("range" not in one.headers and one.status == 200 for one in registry.requests) == 1


def test_a_server_without_ranges_continues_on_the_first_connection(registries: Registries, registry: FakeRegistry) -> None:
    registry.inject(Fault(path=BLOBS, nth=None, action=IgnoreRange()))
    assert read(fetcher(registries, registry), WANTED) == BIG
    assert sum(one.sent == len(BIG) for one in registry.requests) == 1


def test_ranges_are_not_requested_if_they_are_to_be_avoided(registry: FakeRegistry) -> None:
    with opened(registry, HostSettings(avoid=frozenset({"range"}))) as registries:
        assert read(fetcher(registries, registry), WANTED, offset=77) == BIG[77:]
    assert parts(registry) == []


@pytest.mark.parametrize("action", [Cut(100_000), Reset(100_000)])
def test_an_interrupted_part_is_resumed(registries: Registries, registry: FakeRegistry, action: Cut | Reset) -> None:
    registry.inject(Fault(path=BLOBS, nth=4, times=2, action=action))
    assert read(fetcher(registries, registry), WANTED) == BIG
    # On a busy machine, the first connection may arrive at the second part before its interruption.
    assert 100_000 in [one.sent for one in registry.requests]


@pytest.mark.parametrize("nth", [2, 4, 7])
def test_a_part_with_an_expired_url_is_requested_again(
    registries: Registries, registry: FakeRegistry, other: FakeRegistry, nth: int
) -> None:
    # only one refusal: a second one could strike the request after the first, which would be an error
    other.put_blob(REPOSITORY, BIG)
    registry.inject(Fault(path=BLOBS, nth=None, action=Redirect(f"http://{other.host}{{path}}?signed=here")))
    other.inject(Fault(path=BLOBS, nth=nth, action=Answer(403, (), b"<Error><Code>AccessDenied</Code></Error>")))
    assert read(fetcher(registries, registry), WANTED) == BIG
    registries.close()  # the first connection may have been faster than parts that are still on their way
    assert parts(registry) == parts(other)
    (refused,) = [one.headers["range"] for one in other.requests if one.status == 403]
    served = Counter(one.headers.get("range") for one in other.requests if one.status == 206)
    assert served[refused] == 1
    assert sum(one.sent for one in other.requests if one.status == 206) < len(BIG)


def test_a_failing_part_ends_the_transfer(registries: Registries, registry: FakeRegistry) -> None:
    source = fetcher(registries, registry)
    registry.inject(Fault(path=BLOBS, nth=5, times=1000, action=Answer(500, (), b"{}")))
    arrived, error = read_until_error(source, WANTED)
    assert isinstance(error, Unavailable)
    assert BIG.startswith(arrived)
    assert len(arrived) > PART_BYTES


@dataclass(frozen=True, slots=True)
class WatchedShift:
    """Answer with a range one byte later than requested. Set an event once the client has closed the connection."""

    closed: threading.Event
    after: int = 0

    def apply(self, response: Response) -> Response:
        return replace(ShiftRange(1).apply(response), interruption=self)

    def interrupt(self, wire: Wire) -> bool:
        wire.wait(None)
        self.closed.set()
        return False


def test_a_part_with_another_range_is_refused(registries: Registries, registry: FakeRegistry) -> None:
    refused = threading.Event()  # the first connection must not read the whole blob before a part is refused
    registry.inject(Fault(path=BLOBS, nth=1, action=Stall(PART_BYTES, refused)))
    registry.inject(Fault(path=BLOBS, nth=5, times=1000, action=WatchedShift(refused)))
    arrived, error = read_until_error(fetcher(registries, registry), WANTED)
    assert isinstance(error, Corrupt)
    check_message(error, "expected bytes")
    assert BIG.startswith(arrived)


def test_parts_that_are_shorter_than_requested_are_continued(registries: Registries, registry: FakeRegistry) -> None:
    registry.inject(Fault(path=BLOBS, nth=None, action=ShortRange(PART_BYTES // 4)))
    assert read(fetcher(registries, registry), WANTED) == BIG
    assert max(one.sent for one in registry.requests if "range" in one.headers) == PART_BYTES // 4


def test_a_limit_of_one_request_is_enough(registry: FakeRegistry) -> None:
    with opened(registry, HostSettings(in_flight=1)) as registries:
        assert read(fetcher(registries, registry), WANTED) == BIG


def test_no_part_stays_in_flight_after_the_reader_stops(registry: FakeRegistry) -> None:
    with opened(registry) as registries:
        pieces = fetcher(registries, registry).fetch(WANTED)
        read_so_far = 0
        while read_so_far < 3 * PART_BYTES:
            read_so_far += len(next(pieces))
        pieces.close()  # type: ignore[attr-defined] # it is a generator
    assert registries._ranges._pool.held == 0


def test_a_slow_server_does_not_starve_transfers_from_others(registry: FakeRegistry, other: FakeRegistry) -> None:
    big = bytes(range(256)) * (16 * PART_BYTES // 256)
    registry.put_blob(REPOSITORY, big)
    other.put_blob(REPOSITORY, big)
    registry.inject(Fault(path=BLOBS, nth=2, times=1000, action=Stall(0)))  # its parts begin, and no byte of them comes
    with opened(registry) as found, ThreadPoolExecutor(1) as threads:
        pieces = fetcher(found, other).fetch(descriptor(big))
        arrived = [next(pieces) for _ in range(12)]  # from here on it comes in parts
        assert read(fetcher(found, registry), descriptor(big)) == big  # over its first connection
        rest = threads.submit(b"".join, pieces)  # while the parts of the slow server are in flight
        try:
            assert b"".join(arrived) + rest.result(timeout=5) == big  # less than a timeout
        finally:
            found.abort()
    assert found._ranges._pool.held == 0


def test_a_part_without_progress_is_given_up(registry: FakeRegistry) -> None:
    registry.inject(Fault(path=BLOBS, nth=3, times=1000, action=Stall(100_000)))
    with opened(registry) as found:
        found._ranges = Ranges(clock=SlowClock(), patience_s=0.2)
        arrived, error = read_until_error(fetcher(found, registry), WANTED)
        assert isinstance(error, Unavailable)
        check_message(error, "nothing arrived for 0.2 s; will resume", str(WANTED.digest))
        assert BIG.startswith(arrived)
        found.abort()


def test_a_server_that_stops_sending_parts_while_no_part_is_in_flight_is_an_error_to_resume(registry: FakeRegistry) -> None:
    with opened(registry) as found:
        held = found._ranges._pool._held
        held[registry.host] = 7  # by other transfers: there is room for one part
        pieces = fetcher(found, registry).fetch(WANTED)
        arrived = next(pieces) + next(pieces)
        held[registry.host] += 100  # the part is in flight now; all others are read in this thread
        deadline = time.monotonic() + 30
        while not parts(registry) and time.monotonic() < deadline:
            time.sleep(0.01)
        while len(arrived) <= 3 * PART_BYTES:
            arrived += next(pieces)
        registry.inject(Fault(path=BLOBS, nth=None, action=IgnoreRange()))
        with pytest.raises(Unavailable) as caught:
            b"".join(pieces)
        held[registry.host] -= 107
        assert found._ranges._pool.held == 0
    check_message(caught.value, "the server stopped sending parts; will resume", str(WANTED.digest))
    assert BIG.startswith(arrived)


def test_a_transfer_that_is_read_after_the_close_is_interrupted(registry: FakeRegistry) -> None:
    with opened(registry) as found:
        pieces = fetcher(found, registry).fetch(WANTED)
        first = next(pieces)
        found._ranges.close()
        with pytest.raises(Unavailable, match="interrupted; will resume"):
            b"".join(pieces)
    assert BIG.startswith(first)
    assert found._ranges._pool.held == 0


def test_an_abort_ends_all_parts(registry: FakeRegistry) -> None:
    with opened(registry) as registries:
        pieces = fetcher(registries, registry).fetch(WANTED)
        next(pieces)
        registries.abort()
        with pytest.raises(DistError):
            b"".join(pieces)
