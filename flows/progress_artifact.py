"""Publishes the progress of the current flow run as the artifact `progress`.

One thread checks the progress, at first once a second, later less often, and calls Prefect's API only if the progress changed.
So the cost does not depend on the number of events. Each update also costs an event in the database of the server, so a run of
an hour makes about 400 updates, not 3,600. A run that ends within a second has the artifact, too.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactUpdate

from prefect_dist.flows.api import client
from prefect_dist.flows.background import best_effort, submit
from prefect_dist.flows.prefect_events import emit_corruption
from prefect_dist.mirror.progress import LogWriter, ProgressCounter, add_callers_listener
from prefect_dist.transfer.cancellation import current_token
from prefect_dist.transfer.events import Notify, combine_listeners

# The time between two updates: a twentieth of the time of the run so far, within these limits.
_SHORTEST_S, _LONGEST_S = 1.0, 10.0
_NAME = "the progress of the run"
# The percentage of a complete run, and the highest percentage of any other run.
_WHOLE, _MOST = 100.0, 99.9


@contextmanager
def publish_run_progress(*, planning: float | None) -> Iterator[Notify]:
    """Publish the progress of the current flow run during this block. Yield the listener of the run for events.

    The listener writes the log, notifies the listener of the caller, counts the progress, and emits Prefect events for corrupt
    content. `planning` is explained at `ProgressCounter`. If `planning` is None, the run has no progress to publish.
    """
    listener = combine_listeners(add_callers_listener(LogWriter(get_run_logger())), emit_corruption)
    if planning is None:
        yield listener
        return
    counter = ProgressCounter(planning=planning)
    with publish_progress(counter):
        yield combine_listeners(listener, counter)


@contextmanager
def publish_progress(counter: ProgressCounter) -> Iterator[None]:
    """Publish the progress of a counter during this block. The last update is 100 % if all work succeeded."""
    over, done = Event(), False
    artifact, began = _Artifact(counter, client()), time.monotonic()

    def keep() -> None:
        while not over.wait(min(max((time.monotonic() - began) / 20, _SHORTEST_S), _LONGEST_S)):
            artifact.show()
        artifact.show(done=done)

    submit(_NAME, keep)
    try:
        yield
        done = current_token().reason is None and not counter.lacks()
    finally:
        over.set()


class _Artifact:
    """The artifact of one run."""

    def __init__(self, counter: ProgressCounter, client: SyncPrefectClient) -> None:
        self._counter, self._client = counter, client
        self._id: Any = None
        self._last: tuple[float, str] | None = None

    def show(self, *, done: bool = False) -> None:
        """Update the artifact if the progress has changed."""
        percent = _WHOLE if done else min(round(_WHOLE * self._counter.fraction(), 1), _MOST)
        news = percent, self._counter.words()
        if news == self._last:
            return
        with best_effort(_NAME):
            if self._id is None:
                self._id = create_progress_artifact(news[0], key="progress", description=news[1])
            else:
                self._client.update_artifact(self._id, ArtifactUpdate(data=news[0], description=news[1]))
            self._last = news
