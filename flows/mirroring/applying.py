"""Carrying out the plan of a mirror run. Many images are brought in several flow runs, whose graphs people can still read."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.utilities.annotations import quote

from flows.api import CALL_ERRORS, ApiUnavailable, brief, client, require_api
from flows.confirming import Confirming
from flows.limits import Limits
from flows.mirroring.course import Brought, Mirroring
from flows.mirroring.plan import Extra, Image
from flows.progress import Listener
from flows.runner import RUNNER, message, outcome
from flows.walk import Walk
from flows.wanted import Parent
from ocispec import Reference
from ocispec.units import counted
from tasks import mirror as tasks
from tasks.removal import Removed, UnwantedTag
from tasks.session import Session
from tasks.stopping import Stopped, ending

# What one flow run brings, counted in tasks: people can still read its graph, and Prefect draws none of more than 10,000.
# Smaller parts cost: before one begins, its calls wait behind all events that the server has not digested yet.
MOST_TASKS = 1000


class Applying:
    """One run's plan, carried out. `tasks` counts the task runs that ended."""

    def __init__(self, session: Session, listener: Listener, *, name: str, workers: int, retries: int) -> None:
        self.tasks = 0
        self._session, self._listener, self._name = session, listener, name
        self._workers, self._retries = workers, retries
        self._limits = Limits(retries=retries)

    def bring(self, due: Sequence[Image], origins: Mapping[Image, Parent]) -> Brought:
        """Bring images to their targets; `origins` are the results of the tasks that found them.

        If Prefect's API stops answering, the parts that have not begun are not begun, and the run ends as one that was stopped.
        """
        shards, brought = list(_sharded(due)), Brought()
        for number, shard in enumerate(shards, 1):
            label = f"{self._name}, part {number} of {len(shards)}"
            try:
                self._session.stopping.check()
                require_api(self._session.stopping)
                part = self._walk(shard, origins) if len(shards) == 1 else self._apart(shard, origins, label)
            except (ApiUnavailable, Stopped) as exc:
                part = self._not_begun(shard, str(exc))
            except CALL_ERRORS as exc:
                part = self._not_begun(shard, f"Prefect API {client().api_url}: {exc}")
            brought = brought.plus(part)
        return self._confirmed(brought, due)

    def _confirmed(self, brought: Brought, due: Sequence[Image]) -> Brought:
        """Return the result after a last look at the referrers that were listed under fallback tags.

        An image whose referrer is not listed in the end has failed, so that the next run pushes the referrer again.
        """
        if self._session.stopping.reason is not None:
            return brought
        confirming = Confirming(self._session, self._limits, workers=self._workers)
        try:
            unconfirmed = confirming.run()
        except CALL_ERRORS as exc:
            self._session.stopping.set(f"Prefect API {client().api_url}: {exc}")
            return brought
        self.tasks += confirming.tasks
        sources = {step.target: step.wish.source for image in due for step in image.due}
        failures, referrers = dict(brought.failures), dict(brought.referrers)
        for one in unconfirmed:
            for target, pushed in referrers.items():
                if target.locator == one.repository.locator and one.referrers & pushed.keys():
                    failures[target] = f"{sources[target]} to {target}: {one.error}"
                    referrers[target] = {digest: tag for digest, tag in pushed.items() if digest not in one.referrers}
                    self._listener.fell_short(failures[target])
        return replace(brought, failures=failures, referrers=referrers)

    def _not_begun(self, shard: Iterable[Image], reason: str) -> Brought:
        """Have the run end, and return the result of images that nothing was done for."""
        self._session.stopping.set(reason)
        why = ending(str(self._session.stopping.reason))
        return Brought(failures={step.target: f"{step.target}: {why}" for image in shard for step in image.due})

    def remove(self, extras: Sequence[Extra]) -> dict[Reference, Removed | str]:
        """Remove the tags that are due, one after the other. Return the outcome for each, or why it could not be removed.

        A tag that turns out to be needed, or to be someone else's, does not count towards the limit per run: one that was held
        back takes its place. Otherwise a number of such tags would keep all others for ever.
        """
        if (reason := self._session.stopping.reason) is not None:
            return {extra.target: f"{extra.target}: {ending(reason)}" for extra in extras if extra.is_due}
        removed, count = dict[Reference, Removed | str](), 0
        allowed = defaultdict[str, list[UnwantedTag]](list)
        for extra in (one for one in extras if one.is_due):
            allowed[extra.target.locator].append(_unwanted_tag(extra))
        for extra in sorted((one for one in extras if one.most is not None), key=lambda one: one.is_held):
            if extra.is_held:
                if count >= (extra.most or 0):
                    continue
                allowed[extra.target.locator].append(_unwanted_tag(extra))
            result = self._removal(extra.target, allowed[extra.target.locator])
            count += isinstance(result, str) or result.status == "removed"
            removed[extra.target] = result
        return removed

    def _removal(self, target: Reference, allowed: Sequence[UnwantedTag]) -> Removed | str:
        ready = self._limits.ready(tasks.remove, target.host)
        future = ready.submit(quote(target), quote(tuple(allowed)), workers=self._workers)
        result = outcome(future)
        self.tasks += 1
        if isinstance(result, Removed):
            return result
        failure = f"{target}: not removed: {message(result)}"
        self._listener.fell_short(failure)
        return failure

    def _apart(self, shard: Sequence[Image], origins: Mapping[Image, Parent], label: str) -> Brought:
        """Bring some images in a flow run of their own."""
        ended = list[Brought]()  # a way past Prefect, which would take a flow's result apart

        @flow(name="mirror-part", flow_run_name=label, task_runner=RUNNER, persist_result=False)
        def part() -> State[Any]:
            ended.append(brought := self._walk(shard, origins))
            if brought.failures:
                return Failed(message=f"{counted(len(brought.failures), 'failure')} with {counted(len(shard), 'image')}")
            if brought.vetoes:
                return Completed(name="Vetoed", message=f"{len(brought.vetoes)} vetoed of {counted(len(shard), 'image')}")
            return Completed(message=counted(len(shard), "image"))

        try:
            with brief():
                state = part(return_state=True)
        except CALL_ERRORS as exc:  # the API does not record the part
            if not ended:
                raise
            self._session.stopping.set(f"Prefect API {client().api_url}: {exc}")
            return ended[0]
        self.tasks += 1  # Prefect records the part as a task run, too
        if not ended:
            state.result()  # raises what broke it
        return ended[0]

    def _walk(self, shard: Sequence[Image], origins: Mapping[Image, Parent]) -> Brought:
        course = Mirroring(shard, origins)
        walk = Walk(
            self._session.keeper,
            course,
            listener=self._listener,
            stopping=self._session.stopping,
            retries=self._retries,
            window=self._workers,
        )
        ended = walk.run(course.images)
        self.tasks += walk.tasks
        return course.result(ended, tasks=walk.tasks)


def _unwanted_tag(extra: Extra) -> UnwantedTag:
    return UnwantedTag(target=extra.target, digest=extra.record.digest, referrers=frozenset(extra.record.referrers))


def _sharded(images: Iterable[Image]) -> Iterator[list[Image]]:
    """Images in their order, so many together as one flow run may have."""
    shard, content, publications = list[Image](), set[object](), 0
    for image in images:
        shard.append(image)
        content.update(descriptor.digest for descriptor in image.content)
        publications += len(image.due)
        if len(content) + publications >= MOST_TASKS:
            yield shard
            shard, content, publications = [], set(), 0
    if shard:
        yield shard
