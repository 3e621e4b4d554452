"""Carries out the plan of a mirror run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from prefect.utilities.annotations import quote

from prefect_dist.flows.api import CALL_ERRORS, ApiUnavailable, client, require_api
from prefect_dist.flows.confirming import Confirming
from prefect_dist.flows.limits import Limits
from prefect_dist.flows.mirror_parts import MirrorParts
from prefect_dist.flows.mirror_policy import Mirroring
from prefect_dist.flows.runner import message, outcome
from prefect_dist.flows.walk import Walk
from prefect_dist.flows.wanted import Image as Wanted
from prefect_dist.flows.wanted import Parent
from prefect_dist.mirror.mirror_report import Brought
from prefect_dist.mirror.plan import Extra, Image
from prefect_dist.mirror.progress import Listener
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.tasks import mirror as tasks
from prefect_dist.transfer.cancellation import Stopped, ending
from prefect_dist.transfer.removal import Removed, UnwantedTag
from prefect_dist.transfer.session import Session


class Applying:
    """Carries out the plan of one run. `tasks` counts the task runs that ended.

    Images are added as they are planned, and inquiries of the planning run beside them: `walk` is for both.
    """

    def __init__(self, session: Session, listener: Listener, *, name: str, workers: int, retries: int) -> None:
        self._session, self._listener, self._workers = session, listener, workers
        self._limits = Limits(retries=retries)
        self._further_tasks = 0
        self._parts = MirrorParts(name, session.stopping, self._admit)
        self._course = Mirroring(self._parts.ended)
        self.walk = Walk(
            session.keeper, self._course, listener=listener, stopping=session.stopping, retries=retries, window=workers
        )

    @property
    def tasks(self) -> int:
        """The task runs that ended."""
        return self.walk.tasks + self._parts.count + self._further_tasks

    def add(self, planned: Sequence[Image], origins: Mapping[Image, Parent]) -> None:
        """Add images that have to be brought to targets; `origins` are the results that they were planned by.

        If Prefect's API does not answer, nothing of them is begun, and the run ends as one that was stopped.
        """
        try:
            self._session.stopping.check()
            require_api(self._session.stopping)
        except (ApiUnavailable, Stopped) as exc:
            self._session.stopping.set(str(exc))
        images = [self._course.take(one, origins[one]) for one in planned]
        self._parts.divide(list(zip(images, planned, strict=True)))

    def stop(self, reason: str) -> None:
        """Begin nothing more, and have what is in flight end early."""
        self._session.stopping.set(reason)

    def run(self) -> Brought:
        """Bring all images that were added, and those that are added meanwhile."""
        with self._parts:
            self.walk.run()
        return self._confirmed(self._course.result(self.walk))

    def _admit(self, images: Sequence[Wanted]) -> None:
        self.walk.add(images)

    def _confirmed(self, brought: Brought) -> Brought:
        """Return the result after a last look at the referrers that were listed under fallback tags.

        An image whose referrer is not listed in the end has failed, so that the next run pushes the referrer again. A run that
        was stopped does not look: it does not count these referrers as pushed, so that the next run looks for them.
        """
        if self._session.stopping.reason is not None:
            return self._without_fallback_referrers(brought)
        confirming = Confirming(self._session, self._limits, workers=self._workers)
        try:
            unconfirmed = confirming.run()
        except CALL_ERRORS as exc:
            self._session.stopping.set(f"Prefect API {client().api_url}: {exc}")
            return self._without_fallback_referrers(brought)
        self._further_tasks += confirming.tasks
        sources = {step.target: step.wish.source for image in self._course.planned for step in image.due}
        failures, referrers = dict(brought.failures), dict(brought.referrers)
        for one in unconfirmed:
            for target, pushed in referrers.items():
                if target.locator == one.repository.locator and one.referrers & pushed.keys():
                    failures[target] = f"{sources[target]} to {target}: {one.error}"
                    referrers[target] = {digest: tag for digest, tag in pushed.items() if digest not in one.referrers}
                    self._listener.fell_short(failures[target])
        return replace(brought, failures=failures, referrers=referrers)

    def _without_fallback_referrers(self, brought: Brought) -> Brought:
        """Return the result without the referrers that were listed under fallback tags."""
        registries = self._session.registries
        listed = {
            repository.locator: frozenset[Digest]().union(*registries.pusher(repository).referred.values())
            for repository in registries.with_fallback_referrers()
        }
        referrers = {
            target: {digest: tag for digest, tag in pushed.items() if digest not in listed.get(target.locator, ())}
            for target, pushed in brought.referrers.items()
        }
        return replace(brought, referrers=referrers)

    def remove(self, extras: Sequence[Extra], known: Mapping[str, frozenset[str]]) -> dict[Reference, Removed | str]:
        """Remove the tags that are due, one after the other. Return the outcome for each, or why it could not be removed.

        `known` are the tags that the run wants or that the lock file has, by repository. No manifest that one of them needs is
        deleted.

        If Prefect's API is lost meanwhile, the run stops, and the other tags that are due are not removed.

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
                if count >= (extra.most or 0) or self._session.stopping.reason is not None:
                    continue
                allowed[extra.target.locator].append(_unwanted_tag(extra))
            repository = extra.target.locator
            result = self._removal(extra.target, allowed[repository], known.get(repository, frozenset()))
            count += isinstance(result, str) or result.status == "removed"
            removed[extra.target] = result
        return removed

    def _removal(self, target: Reference, allowed: Sequence[UnwantedTag], known: frozenset[str]) -> Removed | str:
        if (reason := self._session.stopping.reason) is not None:
            return f"{target}: {ending(reason)}"
        try:
            ready = self._limits.ready(tasks.remove, target.host)
            result = outcome(ready.submit(quote(target), quote(tuple(allowed)), quote(known), workers=self._workers))
        except CALL_ERRORS as exc:
            self._session.stopping.set(f"Prefect API {client().api_url}: {exc}")
            return f"{target}: {ending(str(self._session.stopping.reason))}"
        self._further_tasks += 1
        if isinstance(result, Removed):
            return result
        failure = f"{target}: not removed: {message(result)}"
        self._listener.fell_short(failure)
        return failure


def _unwanted_tag(extra: Extra) -> UnwantedTag:
    record = extra.record
    referrers = frozenset(record.referrers)
    return UnwantedTag(target=extra.target, digest=record.digest, replaces=record.replaces, referrers=referrers)
