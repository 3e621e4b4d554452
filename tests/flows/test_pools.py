"""The thread pool and the Prefect pool make the same attempts."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.progress import LogWriter
from prefect_dist.ocispec.errors import Corrupt, DistError, NotFound, Unavailable
from prefect_dist.remotes.errors import Exchange, RegistryUnavailable
from prefect_dist.transfer.attempts import has_another
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.pool import Failed, Ok, Outcome, Pool, Unit
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until

_SEEN: dict[str, list[bool]] = {}


def rate_limit_error() -> DistError:
    exchange = Exchange(method="GET", url="https://h/v2/", status=429, codes=(), retry_after_s=0.1)
    return RegistryUnavailable("too many requests", exchange)


def attempt(session: Session, key: str, errors: tuple[DistError, ...]) -> int:
    """Raise the error of this attempt; without an error left, return the number of attempts."""
    assert isinstance(session, Session)
    seen = _SEEN.setdefault(key, [])
    if len(seen) == len(errors):
        return len(seen) + 1
    error = errors[len(seen)]
    seen.append(has_another(error))
    raise error


def run(kind: str, session: Session, unit: Unit[int]) -> Outcome[int]:
    if kind == "threads":
        with ThreadPool(session, window=2, retries=1) as threads:
            return threads.call(unit)

    from prefect import flow

    from prefect_dist.flows import pool as prefect_pool
    from prefect_dist.flows.pool import RUNNER, PrefectPool
    from prefect_dist.tasks._task import task_for

    found = list[Outcome[int]]()

    @flow(task_runner=RUNNER, persist_result=False)
    def one_unit() -> None:
        pool: Pool = PrefectPool(session, window=2, retries=1)
        found.append(pool.call(unit))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefect_pool, "TASKS", {unit.work: task_for(unit.work, "attempt", run_name=lambda: "attempt")})
        one_unit()
    return found[0]


@pytest.fixture
def session(prefect: PrefectServer, tmp_path: Path) -> Iterator[Session]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    notify = LogWriter(logging.getLogger("test"))
    with (
        temporary_settings({PREFECT_API_URL: prefect.url}),
        open_session(SessionSpec(store=str(tmp_path)), notify=notify) as one,
    ):
        yield one


@pytest.mark.parametrize("kind", ["threads", "prefect"])
@pytest.mark.parametrize(
    ("errors", "had_another", "is_ok"),
    [
        ((rate_limit_error(), Corrupt("bits")), [True, True], True),
        ((rate_limit_error(), rate_limit_error(), Unavailable("no route")), [True, True, True], True),
        ((Unavailable("no route"), Unavailable("no route")), [True, False], False),
        ((Corrupt("bits"), Corrupt("bits")), [True, False], False),
        ((NotFound("gone"),), [False], False),
    ],
    ids=["corrupt after a wait", "waits are no retries", "no retry left", "corrupt twice", "not retried"],
)
def test_both_pools_make_the_same_attempts_for_each_kind_of_error(
    session: Session, kind: str, errors: tuple[DistError, ...], had_another: list[bool], *, is_ok: bool, request: Any
) -> None:
    key = request.node.name
    outcome = run(kind, session, Unit(work=attempt, arguments=(key, errors)))
    assert _SEEN[key] == had_another
    assert isinstance(outcome, Ok if is_ok else Failed)


def cancel_own_task_run(session: Session, server: PrefectServer, key: str) -> int:
    """Set the state of this task run to Cancelled, as an operator does in Prefect's UI; then fail once, and succeed."""
    from prefect.runtime import task_run

    assert isinstance(session, Session)
    seen = _SEEN.setdefault(key, [])
    if not seen:
        this = {"task_runs": {"id": {"any_": [str(task_run.id)]}, "state": {"type": {"any_": ["RUNNING"]}}}}
        assert poll_until(lambda: bool(server.post("/task_runs/filter", this)))
        path = f"/task_runs/{task_run.id}"
        server.post(f"{path}/set_state", {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True})
        assert server.get(path)["state_type"] == "CANCELLED"
        seen.append(True)
        raise Unavailable("no route")
    return len(seen)


def test_a_task_run_that_an_operator_cancels_continues_with_its_retries(session: Session, prefect: PrefectServer) -> None:
    unit = Unit(work=cancel_own_task_run, arguments=(prefect, "cancelled"))
    assert run("prefect", session, unit) == Ok(1)


def stop_and_fail(session: Session) -> int:
    """Fail as a request does whose connection the cancellation aborts."""
    session.cancel.set("Ctrl-C")
    raise Unavailable("connection lost")


@pytest.mark.parametrize("kind", ["threads", "prefect"])
def test_the_error_of_a_unit_in_a_cancelled_run_is_stopped(session: Session, kind: str) -> None:
    outcome = run(kind, session, Unit(work=stop_and_fail))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, Stopped)
    assert "Ctrl-C" in str(outcome.error)
