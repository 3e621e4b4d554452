"""Carries out the plan of a mirror run in shards: other processes mirror the images, and this process merges the results.

Only this process plans, writes the lock file, removes tags and reports. The images and the results are files in the content
store, which all processes share.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from prefect_dist.mirror.applying import Applying
from prefect_dist.mirror.division import Division, ShardRunner, add_stats
from prefect_dist.mirror.intentions import Intentions
from prefect_dist.mirror.mirror_policy import MirrorObserver
from prefect_dist.mirror.mirror_shard_files import MirrorShardInput
from prefect_dist.mirror.plan import Plan, PlannedImage
from prefect_dist.mirror.results import MirrorResults
from prefect_dist.mirror.scopes import MirrorScopes
from prefect_dist.mirror.shards import divide_images
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import format_count
from prefect_dist.remotes import Quota
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.events import Notify, ShardsAdvanced
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.repositories import NewRepositories
from prefect_dist.transfer.stats import TransferStats


class DividedApplying(Applying):
    """Carries out the plan of a run in shards. Only the queries of planning run in this process.

    This object receives the plan, and records the intentions after the whole plan is made: the memory of planning is free by
    then.
    """

    def __init__(
        self,
        pool: Pool,
        scopes: MirrorScopes,
        notify: Notify,
        observer: MirrorObserver,
        runner: ShardRunner,
        *,
        intentions: Intentions,
    ) -> None:
        super().__init__(pool, scopes, notify, observer)
        self._division = Division(pool, runner, notify)
        self._intentions = intentions
        self.plan = Plan(images=())
        self._is_complete = False

    @property
    def stats(self) -> TransferStats:
        """The counts of transfers of this process and of all shards."""
        return add_stats([super().stats, self._division.stats])

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """The last reported quota of each registry, by host."""
        return {**super().quotas, **self._division.quotas}

    def finish_earlier(self) -> None:
        """Finish the shards of an earlier attempt of this run.

        The plan that follows finds their images at the targets, and the lock file has their records.
        """
        self._division.finish_earlier()

    def take_images(self, images: Sequence[PlannedImage], _origins: Mapping[PlannedImage, object], /) -> None:
        """Notify the observer of the first images. No task of this process needs the results of the survey."""
        if any(image.is_needed for image in images):
            self.observer.on_begin()

    def take_plan(self, plan: Plan, /) -> None:
        """Keep and report the whole plan."""
        self.plan = plan
        self.observer.on_plan(plan, is_dry=False)

    def run(self) -> MirrorResults:
        """Finish the plan, record the intentions, then mirror the images in shards."""
        self.walk.run()
        shards = self._divide()
        self._record_intentions()
        if (stopped := self._session.cancel.error) is not None:
            failures = dict.fromkeys((target for shard in shards for target in shard.targets), (stopped,))
            return MirrorResults(failures=failures, is_stopped=True)
        found, ended, due = list[MirrorResults](), 0, len(self.plan.due)
        for place, result in self._division.carry_out(shards, format_count(due, "image")):
            found.append(
                _fail(shards[place], result) if isinstance(result, DistError) else self._take(shards[place], result.results)
            )
            ended += len(shards[place].images)
            self._notify(ShardsAdvanced(ended, due))
        results = merge_results(found, is_stopped=self._session.cancel.reason is not None)
        self._is_complete = not results.is_stopped and not results.failures
        return results

    def _divide(self) -> list[MirrorShardInput]:
        new = self._session.memo(NewRepositories).list_new()
        divided = divide_images(self.plan.due, workers=self._division.workers)
        shards = [MirrorShardInput(images=images) for images in divided]
        return [replace(shard, new=own) for shard, own in zip(shards, assign_new(shards, new), strict=True)]

    def _take(self, shard: MirrorShardInput, results: MirrorResults) -> MirrorResults:
        """Return the results of a shard. If the shard was stopped, only its own targets are interrupted, not the whole run.

        A stopped shard knows only that its worker stopped it. If this run was cancelled, that is the reason.
        """
        if not results.is_stopped:
            return results
        reason = self._session.cancel.error
        failures = {
            target: tuple(reason if reason is not None and isinstance(error, Stopped) else error for error in errors)
            for target, errors in results.failures.items()
        }
        return replace(results, failures=failures, interrupted=shard.targets)

    def _record_intentions(self) -> None:
        """Record the intentions, unless the run is stopped. If recording fails, the run fails before publication."""
        if self._session.cancel.reason is not None:
            return
        try:
            self._intentions.record(self.plan.images)
        except DistError as exc:
            self.fail(exc.with_traceback(None))

    def remove_shared_files(self) -> None:
        """Remove the files of a complete run. A later attempt of an incomplete run needs the files."""
        if self._is_complete:
            self._division.remove_files()


def assign_new(shards: Sequence[MirrorShardInput], new: frozenset[str]) -> list[frozenset[str]]:
    """Return the new repositories that each shard need not ask for content: new ones that no other shard uploads to."""
    places = [frozenset(target.locator for target in shard.targets) for shard in shards]
    count = Counter(place for found in places for place in found)
    return [frozenset(place for place in found & new if count[place] == 1) for found in places]


def _fail(shard: MirrorShardInput, error: DistError) -> MirrorResults:
    """Return the results of a shard that failed at all its targets."""
    return MirrorResults(failures=dict.fromkeys(shard.targets, (error,)), begun=shard.targets)


def merge_results(found: Iterable[MirrorResults], *, is_stopped: bool) -> MirrorResults:
    """Return the results of several shards as one. The shards have different targets. `is_stopped` is that of the whole run."""
    merged = list(found)
    return MirrorResults(
        failures={target: one for results in merged for target, one in results.failures.items()},
        vetoes={target: one for results in merged for target, one in results.vetoes.items()},
        referrers={target: one for results in merged for target, one in results.referrers.items()},
        begun=frozenset(target for results in merged for target in results.begun),
        interrupted=frozenset(target for results in merged for target in results.interrupted),
        is_stopped=is_stopped,
    )
