"""The rules for attempts hold on both pools."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.progress import LogWriter
from prefect_dist.ocispec.errors import Corrupt, DistError, NotFound, Unavailable
from prefect_dist.remotes.errors import Exchange, RegistryUnavailable
from prefect_dist.transfer.attempts import has_another
from prefect_dist.transfer.pool import Failed, Ok, Outcome, Pool, Unit
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool
from tests.peers.prefect import PrefectServer

_SEEN: dict[str, list[bool]] = {}


def throttled() -> DistError:
    exchange = Exchange(method="GET", url="https://h/v2/", status=429, codes=(), retry_after_s=0.1)
    return RegistryUnavailable("too many requests", exchange)


def attempt(session: Session, key: str, errors: tuple[DistError, ...]) -> int:
    """Raise the error of this attempt; return the number of attempts if there is none left."""
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
        patch.setattr(prefect_pool, "TASKS", {attempt: task_for(attempt, "attempt", run_name=lambda: "attempt")})
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
        ((throttled(), Corrupt("bits")), [True, True], True),
        ((throttled(), throttled(), Unavailable("no route")), [True, True, True], True),
        ((Unavailable("no route"), Unavailable("no route")), [True, False], False),
        ((Corrupt("bits"), Corrupt("bits")), [True, False], False),
        ((NotFound("gone"),), [False], False),
    ],
    ids=["corrupt after a wait", "waits are no retries", "no retry left", "corrupt twice", "not retried"],
)
def test_attempts(
    session: Session, kind: str, errors: tuple[DistError, ...], had_another: list[bool], *, is_ok: bool, request: Any
) -> None:
    key = request.node.name
    outcome = run(kind, session, Unit(work=attempt, arguments=(key, errors)))
    assert _SEEN[key] == had_another
    assert isinstance(outcome, Ok if is_ok else Failed)
