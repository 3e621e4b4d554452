"""Carries out the plan of a mirror run in shards: other processes mirror the images, and this process merges the results.

Only this process plans, writes the lock file, removes tags and reports. The images and the results are files in the content
store, which all processes share.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

from prefect_dist.mirror.applying import Applying, MirrorScopes
from prefect_dist.mirror.mirror_policy import MirrorObserver
from prefect_dist.mirror.plan import PlannedImage
from prefect_dist.mirror.results import MirrorResults
from prefect_dist.mirror.shard_files import ShardInput, ShardResult
from prefect_dist.mirror.shards import divide_images
from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import DistError, Unavailable
from prefect_dist.ocispec.units import format_count
from prefect_dist.storage.runs import RunFiles
from prefect_dist.transfer.events import Note, Notify
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.stats import TransferStats

# The input of a shard. A killed run may leave temporary files with longer names.
_SHARD = re.compile(r"shard-([0-9]{1,9})\.json")


class ShardRunner(Protocol):
    """Carries out the shards of a run in other processes.

    Attributes:
        run: the name of the run's files in the content store.
        workers: the largest number of shards in flight.
    """

    run: str
    workers: int

    def find_submitted(self, numbers: Collection[int]) -> Mapping[int, Digest]:
        """Return the shards that an earlier attempt of this run submitted, with the digests of their inputs.

        The digests come from Prefect: more people may be able to write to the content store.
        """

    def carry_out(self, shards: Mapping[int, Digest], files: RunFiles) -> Iterator[tuple[int, DistError | None]]:
        """Yield each shard as it ends: with None if its result is in the store, otherwise with the reason.

        `shards` has the digest of the input of each shard.
        """


@dataclass(slots=True)
class _Merged:
    """The merged results of shards."""

    results: list[MirrorResults] = field(default_factory=list)
    stats: list[TransferStats] = field(default_factory=list)


class DividedApplying(Applying):
    """Carries out the plan of a run in shards. Only the queries of planning run in this process."""

    def __init__(self, pool: Pool, scopes: MirrorScopes, notify: Notify, observer: MirrorObserver, runner: ShardRunner) -> None:
        super().__init__(pool, scopes, notify, observer)
        self._runner = runner
        self._images = list[PlannedImage]()
        self._merged = _Merged()
        # Prefect has the flow runs of an earlier attempt under its numbers, and would return an ended flow run for a new shard.
        self._first_number = 0

    @property
    def stats(self) -> TransferStats:
        """The counts of transfers of this process and of all shards."""
        return add_stats([super().stats, *self._merged.stats])

    def finish_earlier(self) -> None:
        """Finish the shards of an earlier attempt of this run, which ended without merging their results.

        The plan that follows finds their images at the targets, and the lock file has their records.
        """
        files = self._session.store.open_run(self._runner.run)
        names = files.names()
        written = {int(found[1]) for name in names if (found := _SHARD.fullmatch(name))}
        self._first_number = max(written, default=-1) + 1
        without_result = sorted(number for number in written if f"result-{number}.json" not in names)
        if without_result and (unfinished := self._runner.find_submitted(without_result)):
            self._notify(Note(f"finishing {format_count(len(unfinished), 'shard')} of an earlier attempt"))
            for _ in self._runner.carry_out(unfinished, files):
                self._session.cancel.check()

    def add(self, planned: Sequence[PlannedImage], _origins: Mapping[PlannedImage, object], /) -> None:
        """Add planned images. No task of this process needs the results of the survey."""
        self.observer.on_begin()
        self._images += planned

    def run(self) -> MirrorResults:
        """Finish the plan, then mirror the added images in shards."""
        self.walk.run()
        if self._session.cancel.reason is not None:
            return MirrorResults(is_stopped=True)
        files = self._session.store.open_run(self._runner.run)
        divided = divide_images(self._images, workers=self._runner.workers)
        shards = dict(enumerate(divided, start=self._first_number))
        digests = {number: _write_input(files, number, images) for number, images in shards.items()}
        if shards:
            counts = f"{format_count(len(self._images), 'image')} in {format_count(len(shards), 'shard')}"
            self._notify(Note(f"{counts}, at most {self._runner.workers} at a time"))
        for number, error in self._runner.carry_out(digests, files):
            self._take(shards[number], number, error, files)
        results = merge_results(self._merged.results)
        if not results.is_stopped and not results.failures:
            files.remove()
        return results

    def _take(self, images: Sequence[PlannedImage], number: int, error: DistError | None, files: RunFiles) -> None:
        """Add the result of a shard. A shard without a valid result has failed at all its targets."""
        targets = [action.target for image in images for action in image.actions if action.is_due or action.is_judged]
        try:
            result = _read_result(files, number, targets, error)
        except DistError as exc:
            failed = MirrorResults(
                failures=dict.fromkeys(targets, (exc.with_traceback(None),)),
                begun=frozenset(targets),
                is_stopped=self._session.cancel.reason is not None,
            )
            self._merged.results.append(failed)
            return
        self._merged.results.append(result.results)
        self._merged.stats.append(result.stats)
        self._pool.runs += result.tasks


def _write_input(files: RunFiles, number: int, images: tuple[PlannedImage, ...]) -> Digest:
    """Write the input of a shard, and return the digest of the file."""
    raw = ShardInput(images=images).to_json()
    files.write(f"shard-{number}.json", raw)
    return Digest.of(raw)


def _read_result(files: RunFiles, number: int, targets: Collection[Reference], error: DistError | None) -> ShardResult:
    """Return the result of a shard.

    Raises:
        DistError: `error` if the result is missing; the result is damaged; or an error of the store.
    """
    name = f"result-{number}.json"
    raw = files.read(name)
    if raw is None:
        raise error or Unavailable("the shard ended without a result", subject=f"{files.url}/{name}")
    return ShardResult.from_json(raw, targets=targets, at=f"{files.url}/{name}")


def merge_results(found: Iterable[MirrorResults]) -> MirrorResults:
    """Return the results of several shards as one. The shards have different targets."""
    merged = list(found)
    return MirrorResults(
        failures={target: one for results in merged for target, one in results.failures.items()},
        vetoes={target: one for results in merged for target, one in results.vetoes.items()},
        referrers={target: one for results in merged for target, one in results.referrers.items()},
        begun=frozenset(target for results in merged for target in results.begun),
        is_stopped=any(results.is_stopped for results in merged),
    )


def add_stats(stats: Iterable[TransferStats]) -> TransferStats:
    """Return the sums of counts."""
    found = [asdict(one) for one in stats]
    return TransferStats(**{name: sum(one[name] for one in found) for name in TransferStats.__dataclass_fields__})
