"""Carries out a run in threads of this process, without Prefect."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from prefect_dist.mirror.metrics import push_metrics
from prefect_dist.mirror.progress import LogWriter
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.events import Notify, combine_listeners
from prefect_dist.transfer.session import open_session
from prefect_dist.transfer.threads import ThreadPool
from prefect_dist.transfer.walk_state import Admit, ImageState

if TYPE_CHECKING:
    from prefect_dist.mirror.plan import Plan, PlannedImage, TargetAction

_log = logging.getLogger(__name__)


def run_directly(spec: RunSpec, notify: Notify) -> RunReport:
    """Carry out a run. `notify` receives the events of the run.

    The log has a line per event and per warning if its level is INFO or lower. Warnings are not logged at the level WARNING,
    because the commands print the same warnings before the run.

    Raises:
        DistError: the run could not begin, such as without a store.
    """
    if _log.isEnabledFor(logging.INFO):
        notify = combine_listeners(LogWriter(_log), notify)
    for warning in spec.warnings:
        _log.info("%s", warning)
    with (
        open_session(spec.session, notify=notify) as session,
        ThreadPool(session, window=spec.window, retries=spec.retries) as pool,
    ):
        context = RunContext(pool=pool, scopes=WholeRun(), notify=notify, observer=SilentObserver())
        report = spec.job.run(context)
    push_metrics(report, log=_log)
    return report


class WholeRun:
    """Leaves all units of a run in one scope."""

    def open_fetch(self) -> "WholeFetch":
        """Return the scope of a fetch."""
        return WholeFetch()

    def open_mirror(self, _name: str, /) -> "WholeMirror":
        """Return the scope of a mirror."""
        return WholeMirror()


class _Whole:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object, /) -> None:
        pass

    def end_image(self, image: ImageState, *, is_vetoed: bool = False) -> None:
        """Count nothing."""


class WholeFetch(_Whole):
    """Leaves all images of a fetch in one scope."""

    def divide(self, images: Sequence[ImageState], admit: Admit) -> None:
        """Admit all images at once."""
        admit(images)


class WholeMirror(_Whole):
    """Leaves all images of a mirror in one scope."""

    def divide(self, images: "Sequence[tuple[ImageState, PlannedImage]]", admit: Admit) -> None:
        """Admit all images at once."""
        admit([image for image, _ in images])


class SilentObserver:
    """Ignores the results of a mirror run. The report has the results."""

    def on_begin(self) -> None:
        """Do nothing."""

    def on_plan(self, plan: "Plan", *, is_dry: bool) -> None:
        """Do nothing."""

    def on_mirrored(self, action: "TargetAction") -> None:
        """Do nothing."""

    def on_failed(self, action: "TargetAction", errors: Sequence[DistError]) -> None:
        """Do nothing."""
