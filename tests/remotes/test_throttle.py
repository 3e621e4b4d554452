"""Request rates: the throttle alone with a clock that the test sets, then against a real limit."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from prefect_dist.ocispec.errors import NotFound, Unavailable
from prefect_dist.remotes import Hosts, HostSettings, Quota, Registries, RegistryError, RegistrySettings
from prefect_dist.remotes.throttle import Aborted, Throttle
from prefect_dist.remotes.throttled import read_quota
from prefect_dist.remotes.token import pull_scope
from tests import images
from tests.fakes.access import Bearer
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.peers.processes import poll_until
from tests.remotes.asking import (
    BLOB,
    REPOSITORY,
    SETTINGS,
    Clock,
    anonymous,
    descriptor,
    fetcher,
    list_requests,
    read,
    reference,
)

IMAGE = images.image(seed=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def one(throttle: Throttle, *, refused: float | None = None, accepted: bool = False) -> float:
    """Send one request; return the seconds of the pause instead, if there is one."""
    if alone := throttle.acquire():
        return alone
    if accepted:
        throttle.note_accepted()
    else:
        throttle.note_refused(refused)
    throttle.release()
    return 0.0


def admitted(throttle: Throttle, clock: Clock, *, seconds: float, most: int) -> int:
    """Number of requests that are accepted within some seconds by the clock, out of a maximum."""
    count, end = 0, clock.now + seconds
    while count < most:
        turn = throttle._next_turn if throttle._pace is not None else clock.now
        clock.now = max(clock.now, turn)  # instead of waiting
        if clock.now > end or one(throttle, accepted=True):
            break
        count += 1
    clock.now = max(clock.now, end)
    return count


def test_requests_are_not_delayed_without_a_refusal(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert [one(throttle, accepted=True) for _ in range(2000)] == [0.0] * 2000


def test_requests_pause_for_the_time_in_retry_after(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    one(throttle, refused=30)
    assert one(throttle) == 30
    clock.now += 29
    assert one(throttle) == 1
    clock.now += 1
    assert one(throttle, accepted=True) == 0


def test_a_shorter_pause_does_not_replace_a_longer_one(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    one(throttle, refused=30)
    throttle.note_refused(1)
    throttle.note_refused(None)
    assert one(throttle) == 30


def test_a_pause_is_reported_once_and_when_it_grows(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    assert [throttle.note_refused(seconds) for seconds in (None, 0, 10, 10.5, 5, None, 20)] == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    clock.now += 19.5
    assert not throttle.note_refused(1)
    clock.now += 1
    assert throttle.note_refused(1)


def test_after_a_refusal_the_rate_drops_and_grows_back(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for _ in range(40):
        one(throttle, accepted=True)
        clock.now += 0.05  # 20 a second
    one(throttle, refused=1)
    clock.now += 1
    assert 10 <= admitted(throttle, clock, seconds=1, most=1000) <= 16
    taken = [admitted(throttle, clock, seconds=1, most=1000) for _ in range(10)]
    assert taken == sorted(taken)
    assert 19 <= taken[-1] <= 28


def test_refusals_of_concurrent_requests_count_once(clock: Clock) -> None:
    throttle = Throttle(in_flight=16, clock=clock)
    for _ in range(16):
        throttle.acquire()
    for _ in range(16):
        throttle.note_refused(None)
    assert throttle._window == 8
    clock.now += 2
    throttle.note_refused(None)
    assert throttle._window == 8  # half of the 16 that are still under way
    for _ in range(16):
        throttle.release()
    clock.now += 2
    throttle.note_refused(None)
    assert throttle._window == 1


def test_the_concurrency_grows_back_to_its_limit(clock: Clock) -> None:
    throttle = Throttle(in_flight=4, clock=clock)
    throttle.note_refused(None)
    assert throttle._window == 1
    for _ in range(100):
        throttle.note_accepted()
    assert throttle._window == 4


def test_a_configured_rate_is_kept(clock: Clock) -> None:
    throttle = Throttle(per_second=10, clock=clock)
    assert [admitted(throttle, clock, seconds=1, most=1000) for _ in range(5)] == pytest.approx([10] * 5, abs=1)


def test_concurrent_requests_are_limited() -> None:
    throttle = Throttle(in_flight=2)
    throttle.acquire()
    throttle.acquire()
    with ThreadPoolExecutor(1) as threads:
        third = threads.submit(throttle.acquire)
        assert poll_until(lambda: len(throttle._changed._waiters) == 1, timeout_s=10)  # type: ignore[attr-defined]
        assert not third.done()
        throttle.release()
        assert third.result(timeout=10) == 0


def test_a_request_is_in_flight_until_its_response_was_read(registry: FakeRegistry) -> None:
    registry.put_blob(REPOSITORY, BLOB)
    hosts = Hosts(named={registry.host: HostSettings(in_flight=1)})
    with Registries(RegistrySettings(hosts=hosts, connect_timeout_s=10), credentials=anonymous) as registries:
        throttle = registries._throttled._throttle(httpx.URL(f"http://{registry.host}"))
        pieces = fetcher(registries, registry).fetch(descriptor(BLOB))
        next(pieces)
        assert throttle._in_flight == 1
        pieces.close()  # type: ignore[attr-defined] # it is a generator
        assert throttle._in_flight == 0
        assert read(fetcher(registries, registry), descriptor(BLOB)) == BLOB
        with pytest.raises(NotFound):
            registries.resolve(reference(registry))
        assert throttle._in_flight == 0
    assert len(list_requests(registry)) == 3


def test_an_abort_ends_the_wait_for_a_turn() -> None:
    throttle = Throttle(in_flight=1)
    throttle.acquire()
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        throttle.acquire()

    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(wait)
        assert waiting.wait(10)
        throttle.abort()
        with pytest.raises(Aborted):
            second.result(timeout=10)
    with pytest.raises(Aborted):
        throttle.acquire()


# Through the client.


@pytest.fixture
def found() -> Iterator[Registries]:
    with Registries(SETTINGS, credentials=anonymous) as registries:
        yield registries


def put(registry: FakeRegistry) -> None:
    root = IMAGE.manifests[-1]
    registry.put_manifest(REPOSITORY, root.raw, root.media_type, tag="v1")


@pytest.mark.parametrize("status", [429, 503])
def test_no_request_is_sent_during_a_pause(found: Registries, registry: FakeRegistry, status: int) -> None:
    put(registry)
    registry.inject(Fault(method="HEAD", action=Answer(status, (("Retry-After", "3600"),))))
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            found.resolve(reference(registry))
        assert isinstance(caught.value, RegistryError)
        assert caught.value.exchange.retry_after_s == pytest.approx(3600, abs=60)
    assert len(list_requests(registry)) == 1
    assert "the server is rate-limiting" in str(caught.value)


def test_the_callback_gets_the_length_of_a_pause(registry: FakeRegistry, other: FakeRegistry) -> None:
    waits: list[tuple[str, float]] = []
    put(other)
    for method in ("HEAD", "GET"):
        registry.inject(Fault(method=method, nth=None, action=Answer(429, (("Retry-After", "3600"),))))
        other.inject(Fault(method=method, action=Answer(429)))
    with Registries(SETTINGS, credentials=anonymous, on_throttled=lambda *what: waits.append(what)) as found:
        for server in (registry, registry, other):
            with pytest.raises(Unavailable):
                found.resolve(reference(server))
    assert waits == [(registry.host, 3600)]


def test_requests_to_other_servers_continue_during_a_pause(
    found: Registries, registry: FakeRegistry, other: FakeRegistry
) -> None:
    put(other)
    registry.inject(Fault(method="HEAD", action=Answer(429, (("Retry-After", "3600"),))))
    with pytest.raises(Unavailable):
        found.resolve(reference(registry))
    assert str(found.resolve(reference(other)).descriptor.digest) == IMAGE.root.digest


def test_a_503_without_retry_after_does_not_lower_the_rate(found: Registries, registry: FakeRegistry) -> None:
    put(registry)
    registry.inject(Fault(method="HEAD", action=Answer(503, ())))
    with pytest.raises(Unavailable):
        found.resolve(reference(registry))
    assert str(found.resolve(reference(registry)).descriptor.digest) == IMAGE.root.digest
    assert found._throttled._throttle(httpx.URL(f"http://{registry.host}"))._pace is None


def guarded_settings(guarded: FakeRegistry) -> RegistrySettings:
    """One request at a time to a registry whose token server is on its own host."""
    hosts = Hosts(named={guarded.host: HostSettings(in_flight=1)})
    return RegistrySettings(hosts=hosts, connect_timeout_s=10, read_timeout_s=10)


def test_a_request_that_waits_for_a_token_holds_no_slot() -> None:
    with FakeRegistry(auth=Bearer()) as guarded:
        guarded.put_blob(REPOSITORY, BLOB)
        with Registries(guarded_settings(guarded), credentials=anonymous) as found, ThreadPoolExecutor(1) as threads:
            throttle = found._throttled._throttle(httpx.URL(f"http://{guarded.host}"))
            with found._auth_of(guarded.host, REPOSITORY).token_lock(
                pull_scope(REPOSITORY)
            ):  # as another thread that gets the token
                waiting = threads.submit(read, fetcher(found, guarded), descriptor(BLOB))
                try:
                    assert poll_until(
                        lambda: bool(guarded.find_requests("GET", "/v2/.*")) and throttle._in_flight == 0, timeout_s=5
                    )
                    assert found._client.get(f"http://{guarded.host}/token?service=fake").status_code == 200
                except BaseException:
                    found.abort()
                    raise
            assert waiting.result(timeout=10) == BLOB


def test_reported_quotas_are_recorded(found: Registries, registry: FakeRegistry) -> None:
    put(registry)
    said = (("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "7;w=21600"))
    registry.inject(Fault(method="HEAD", action=Answer(429, said)))
    with pytest.raises(Unavailable):
        found.resolve(reference(registry))
    assert found.quotas() == {registry.host: Quota(limit=100, remaining=7, window_s=21600)}


@pytest.mark.parametrize(
    ("limit", "remaining", "quota"),
    [
        ("100;w=21600", "99;w=21600", Quota(limit=100, remaining=99, window_s=21600)),
        ("100", "99", Quota(limit=100, remaining=99, window_s=None)),
        (" 100 ; w=5", "0", Quota(limit=100, remaining=0, window_s=5)),
        ("100;w=x", "1", Quota(limit=100, remaining=1, window_s=None)),
        ("", "", None),
        ("100", "", None),
        ("-1", "5", None),
        ("1e3", "5", None),
        ("9" * 400, "5", None),
        ("\u0663", "5", None),
    ],
)
def test_quotas_are_read_from_headers(limit: str, remaining: str, quota: Quota | None) -> None:
    headers = httpx.Headers([(b"ratelimit-limit", limit.encode()), (b"ratelimit-remaining", remaining.encode())])
    assert read_quota(headers) == quota
