"""An artifact of the current flow run, `progress`, that shows how far the run is while it goes.

One thread looks once a second, and asks Prefect's API for something only if there is news: what a run costs does not depend on
how much happens in it. A run that is over before has the artifact, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any, Protocol

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactUpdate

from prefect_dist.flows.api import client
from prefect_dist.flows.background import meanwhile, tolerated
from prefect_dist.flows.prefect_events import emit_corruption
from prefect_dist.mirror.progress import LogWriter, ProgressCounter, add_callers_listener
from prefect_dist.transfer.cancellation import current_token
from prefect_dist.transfer.events import Notify, combine_listeners

_EVERY_S = 1.0
_WHAT = "the progress of the run"
# What says that a run has done all; what has not, or is not over, shows less.
_WHOLE, _MOST = 100.0, 99.9


class Course(Protocol):
    """What knows how far a run is. Asked by another thread than the run's."""

    def fraction(self) -> float:
        """How much of what is known to be done is: 0 to 1."""

    def words(self) -> str:
        """The same for people."""

    def lacks(self) -> bool:
        """Whether something of it failed, and nothing more is done about that."""


@contextmanager
def watched(*, planning: float = 0) -> Iterator[Notify]:
    """Yield the `notify` of the current flow run, and keep its progress artifact; `planning`: see `ProgressCounter`.

    It writes the log, notifies the caller's listener, counts the progress, and emits Prefect events for corrupt content.
    """
    counter = ProgressCounter(planning=planning)
    with shown(counter):
        yield combine_listeners(add_callers_listener(LogWriter(get_run_logger())), counter, emit_corruption)


@contextmanager
def shown(course: Course) -> Iterator[None]:
    """Have the artifact show a course, until the block is left: that all is done then, unless something failed or was ended."""
    over, done = Event(), False
    artifact = _Artifact(course, client())

    def keep() -> None:
        while not over.wait(_EVERY_S):
            artifact.show()
        artifact.show(done=done)

    meanwhile(_WHAT, keep)
    try:
        yield
        done = current_token().reason is None and not course.lacks()
    finally:
        over.set()


class _Artifact:
    """What Prefect shows."""

    def __init__(self, course: Course, client: SyncPrefectClient) -> None:
        self._course, self._client = course, client
        self._id: Any = None
        self._last: tuple[float, str] | None = None

    def show(self, *, done: bool = False) -> None:
        """Have it shown, if it is news."""
        percent = _WHOLE if done else min(round(_WHOLE * self._course.fraction(), 1), _MOST)
        news = percent, self._course.words()
        if news == self._last:
            return
        with tolerated(_WHAT):
            if self._id is None:
                self._id = create_progress_artifact(news[0], key="progress", description=news[1])
            else:
                self._client.update_artifact(self._id, ArtifactUpdate(data=news[0], description=news[1]))
            self._last = news
