"""Carries out the plan of a mirror run."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from prefect_dist.mirror.mirror_policy import MirrorObserver, MirrorPolicy, Unconfirmed
from prefect_dist.mirror.plan import OrphanTag, PlannedImage
from prefect_dist.mirror.results import MirrorResults
from prefect_dist.mirror.scopes import MirrorScopes
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.remotes import Quota
from prefect_dist.transfer import units
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.events import Notify, StepFailed
from prefect_dist.transfer.pool import Failed, Pool, Unit
from prefect_dist.transfer.removal import Removed, UnwantedTag
from prefect_dist.transfer.stats import TransferStats
from prefect_dist.transfer.walk import Walk
from prefect_dist.transfer.walk_state import ImageState


class Applying:
    """Carries out the plan of a run.

    Planning adds images while the walk runs, and the queries of planning run in the same `walk`.
    """

    def __init__(self, pool: Pool, scopes: MirrorScopes, notify: Notify, observer: MirrorObserver) -> None:
        self._pool, self._session, self._scopes, self._notify = pool, pool.session, scopes, notify
        self.observer = observer
        self._policy = MirrorPolicy(pool.session, scopes.end_image, observer)
        self.walk = Walk(pool.session.recorder, self._policy, pool, notify)

    def finish_earlier(self) -> None:
        """Finish the work that an earlier attempt of this run left in other processes. Here, all work ends with the run."""

    def remove_shared_files(self) -> None:
        """Remove the files that the run shared with other processes. Here, no file is shared."""

    @property
    def stats(self) -> TransferStats:
        """The counts of the transfers so far."""
        return self._session.stats

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """The last reported quota of each registry, by host."""
        return self._session.remotes.registries.quotas()

    def add(self, planned: Sequence[PlannedImage], origins: Mapping[PlannedImage, object], /) -> None:
        """Add planned images. `origins` are the results of the survey."""
        self.observer.on_begin()
        images = [self._policy.take(one, origins[one]) for one in planned]
        self._keep_roots(images)
        self._scopes.divide(list(zip(images, planned, strict=True)), self.walk.add)

    def _keep_roots(self, images: Iterable[ImageState]) -> None:
        """Protect the roots of the images from gc, with one write. The walk would write and sync a record for each image."""
        roots = [image.root for image in images if image.root is not None]
        if roots:
            with suppress(DistError):  # the walk protects the root of each image again, and an error fails the image
                self._session.recorder.keep(*roots)

    def fail(self, error: DistError) -> None:
        """End the run because of an error: no new unit begins, and units in flight end early."""
        self._session.cancel.fail(error)

    def run(self) -> MirrorResults:
        """Mirror the added images, also images added during the run."""
        with self._scopes:
            self.walk.run()
        if self._session.cancel.reason is None:
            self._confirm()
        results = self._policy.result()
        if self._session.cancel.reason is not None:
            return replace(self._without_fallback_referrers(results), is_stopped=True)
        return results

    def _confirm(self) -> None:
        """Check that each fallback tag lists the pushed referrers. Otherwise the image has failed.

        A stopped run skips the check and does not count the referrers as pushed, so that the next run checks the fallback tags.
        """
        unconfirmed = _confirm_referrers(self._pool)
        for one in () if self._session.cancel.reason is not None else unconfirmed:
            for target in self._policy.fail_unconfirmed(one):
                self._notify(StepFailed(one.error, step=str(target)))

    def _without_fallback_referrers(self, results: MirrorResults) -> MirrorResults:
        """Return the results without the referrers under fallback tags."""
        registries = self._session.remotes.registries
        listed = {
            repository.locator: frozenset[Digest]().union(*registries.open_target(repository).fallback_referrers.values())
            for repository in registries.with_fallback_referrers()
        }
        referrers = {
            target: {digest: tag for digest, tag in pushed.items() if digest not in listed.get(target.locator, ())}
            for target, pushed in results.referrers.items()
        }
        return replace(results, referrers=referrers)

    def remove(self, orphans: Sequence[OrphanTag], known: Mapping[str, frozenset[str]]) -> dict[Reference, Removed | DistError]:
        """Remove the due tags in sequence. Return the result for each attempted removal.

        `known` are the wanted tags and the tags of the lock file, by repository. The manifests of known tags are not deleted.

        If the run loses Prefect's API, the run stops and removes no further tags.

        A tag that another tag needs, or that someone else changed, does not count towards the limit per run: a held tag takes
        its place. Otherwise many shared tags would keep the held tags forever.
        """
        if (stopped := self._session.cancel.error) is not None:
            return {orphan.target: stopped for orphan in orphans if orphan.is_due}
        removed, count = dict[Reference, Removed | DistError](), 0
        allowed = defaultdict[str, list[UnwantedTag]](list)
        for orphan in (one for one in orphans if one.is_due):
            allowed[orphan.target.locator].append(_unwanted_tag(orphan))
        for orphan in sorted((one for one in orphans if one.most is not None), key=lambda one: one.is_held):
            if orphan.is_held:
                if count >= (orphan.most or 0) or self._session.cancel.reason is not None:
                    continue
                allowed[orphan.target.locator].append(_unwanted_tag(orphan))
            repository = orphan.target.locator
            result = self._remove_tag(orphan.target, allowed[repository], known.get(repository, frozenset()))
            count += isinstance(result, DistError) or result.status == "removed"
            removed[orphan.target] = result
        return removed

    def _remove_tag(self, target: Reference, allowed: Sequence[UnwantedTag], known: frozenset[str]) -> Removed | DistError:
        if (stopped := self._session.cancel.error) is not None:
            return stopped
        unit = Unit(
            work=units.remove,
            arguments=(target, tuple(allowed), known),
            options={"workers": self._pool.window},
            hosts=frozenset({target.host}),
        )
        outcome = self._pool.call(unit)
        if not isinstance(outcome, Failed):
            return outcome.value
        if not isinstance(outcome.error, Stopped):
            self._notify(StepFailed(outcome.error, step=f"{target}: not removed"))
        return outcome.error


def _confirm_referrers(pool: Pool) -> list[Unconfirmed]:
    """Check the fallback tags of the run, and add entries that other clients overwrote. Return the referrers with an error.

    Registries without a referrers API list referrers under fallback tags. A run without fallback tags runs no unit.
    """
    registries, found = pool.session.remotes.registries, list[Unconfirmed]()
    for repository, outcome in pool.run(registries.with_fallback_referrers(), _confirmation):
        if isinstance(outcome, Failed):
            pushed = frozenset[Digest]().union(*registries.open_target(repository).fallback_referrers.values())
            found.append(Unconfirmed(repository=repository, referrers=pushed, error=outcome.error))
        else:
            found += [Unconfirmed(repository=repository, referrers=one, error=error) for one, error in outcome.value.found]
    return found


def _confirmation(repository: Reference) -> Unit[units.Answer[units.UnlistedReferrers]]:
    return Unit(work=units.confirm_referrers, arguments=(repository,), hosts=frozenset({repository.host}))


def _unwanted_tag(orphan: OrphanTag) -> UnwantedTag:
    record = orphan.record
    referrers = frozenset(record.referrers)
    return UnwantedTag(target=orphan.target, digest=record.digest, replaces=record.replaces, referrers=referrers)
