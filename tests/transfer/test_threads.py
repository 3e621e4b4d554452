"""The thread pool: attempts, waits and cancellation."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec.errors import Corrupt, DistError, NotFound, Unavailable
from prefect_dist.remotes.errors import Exchange, RegistryUnavailable
from prefect_dist.transfer import threads
from prefect_dist.transfer.attempts import has_another
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.pool import Failed, Lane, Ok, Unit, Worklist
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with open_session(SessionSpec(store=str(tmp_path))) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_FIRST_DELAY_S", 0.0)


def rate_limit_error(seconds: float) -> DistError:
    exchange = Exchange(method="GET", url="https://h/v2/", status=429, codes=(), retry_after_s=seconds)
    return RegistryUnavailable("too many requests", exchange)


class Failing:
    """A unit of work that raises some errors, one per attempt, then returns its number of attempts."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.attempts = 0
        self.had_another: list[bool] = []

    def __call__(self, session: Session) -> int:
        assert isinstance(session, Session)
        self.attempts += 1
        if not self._errors:
            return self.attempts
        error = self._errors.pop(0)
        if isinstance(error, DistError):
            self.had_another.append(has_another(error))
        raise error


def test_a_retryable_error_is_retried(session: Session) -> None:
    work = Failing(Unavailable("no route"), Unavailable("no route"))
    with ThreadPool(session, window=1, retries=2) as pool:
        assert pool.call(Unit(work=work)) == Ok(3)
    assert work.had_another == [True, True]
    assert pool.runs == 1


def test_the_last_error_is_the_outcome_if_no_retry_is_left(session: Session) -> None:
    work = Failing(*(Unavailable(f"no route, attempt {number}") for number in (1, 2, 3)))
    with ThreadPool(session, window=1, retries=1) as pool:
        outcome = pool.call(Unit(work=work))
    assert isinstance(outcome, Failed)
    assert str(outcome.error) == "no route, attempt 2"
    assert work.had_another == [True, False]


@pytest.mark.parametrize(("error", "attempts"), [(NotFound("gone"), 1), (Corrupt("other bytes"), 2)])
def test_not_found_is_not_retried_and_corrupt_is_retried_once(session: Session, error: DistError, attempts: int) -> None:
    work = Failing(*[error] * 5)
    with ThreadPool(session, window=1, retries=3) as pool:
        assert pool.call(Unit(work=work)) == Failed(error)
    assert work.attempts == attempts


def test_a_wait_for_retry_after_is_no_retry_and_frees_a_slot_of_the_window(session: Session) -> None:
    other_ran = threading.Event()
    first = rate_limit_error(0.2)

    def wait_for_other(_: Session) -> None:
        if not other_ran.is_set():
            raise first

    def run_other(_: Session) -> None:
        other_ran.set()

    with ThreadPool(session, window=1, retries=0) as pool:
        made: Worklist[Callable[[Session], None], None] = Worklist(pool, lambda work: Unit(work=work), lane=Lane)
        made.add([wait_for_other, run_other])
        assert dict(made) == {wait_for_other: Ok(None), run_other: Ok(None)}


def test_a_wait_ends_when_the_run_is_cancelled(session: Session) -> None:
    def throttle(running: Session) -> None:
        threading.Timer(0.1, running.cancel.set, ["interrupted"]).start()
        raise rate_limit_error(600)

    with ThreadPool(session, window=1) as pool:
        outcome = pool.call(Unit(work=throttle))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, Stopped)


def test_an_exception_in_the_block_of_a_pool_ends_waiting_units(session: Session) -> None:
    waits = threading.Event()

    def throttle(_: Session) -> None:
        waits.set()
        raise rate_limit_error(600)

    def fail_meanwhile() -> None:
        with ThreadPool(session, window=2) as pool:
            pool.start(Unit(work=throttle), lambda _: None)
            assert waits.wait(10)
            raise LookupError("no such record")

    with pytest.raises(LookupError):
        fail_meanwhile()
    assert "no such record" in str(session.cancel.reason)


def test_rate_limited_registries_do_not_occupy_all_threads(session: Session) -> None:
    served = threading.Event()

    def wait_for_other(_: Session, _host: int) -> None:
        if not served.is_set():
            raise rate_limit_error(0.2)

    def serve(_: Session, _host: int) -> None:
        served.set()

    with ThreadPool(session, window=1) as pool:
        made: Worklist[int, None] = Worklist(
            pool, lambda host: Unit(work=serve if host == 20 else wait_for_other, arguments=(host,)), lane=Lane
        )
        made.add(range(21))
        assert [outcome for _, outcome in made] == [Ok(None)] * 21


def test_waits_for_a_registry_do_not_lengthen_the_delay_of_a_retry(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_FIRST_DELAY_S", 0.01)
    work = Failing(*[rate_limit_error(0)] * 30, Unavailable("no route"))
    with ThreadPool(session, window=1, retries=1) as pool:
        assert pool.call(Unit(work=work)) == Ok(32)


def test_the_error_of_an_outcome_has_no_traceback(session: Session) -> None:
    with ThreadPool(session, window=1) as pool:
        outcome = pool.call(Unit(work=Failing(NotFound("gone"))))
    assert isinstance(outcome, Failed)
    assert outcome.error.__traceback__ is None


def test_an_exception_whose_text_fails_is_an_outcome_with_its_class(session: Session) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with ThreadPool(session, window=1) as pool:
        outcome = pool.call(Unit(work=Failing(Mute())))
    assert isinstance(outcome, Failed)
    assert str(outcome.error) == "unexpected Mute; this is a bug in dist: report it"


def test_an_unexpected_error_is_an_outcome_that_asks_for_a_report(session: Session) -> None:
    with ThreadPool(session, window=1) as pool:
        outcome = pool.call(Unit(work=Failing(KeyError("digest"))))
    assert isinstance(outcome, Failed)
    assert str(outcome.error) == "unexpected KeyError: 'digest'; this is a bug in dist: report it"
