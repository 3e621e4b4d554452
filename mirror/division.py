"""The shards of a divided run: their inputs and results are files in the content store, which all processes share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Protocol, TypeVar

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import DistError, Unavailable
from prefect_dist.ocispec.units import format_count
from prefect_dist.remotes import Quota
from prefect_dist.storage.runs import PARENT_ALIVE, RunFiles, name_input, name_result, parse_input_name
from prefect_dist.transfer.events import Note, Notify
from prefect_dist.transfer.pool import Pool
from prefect_dist.transfer.stats import TransferStats


class ShardRunner(Protocol):
    """Carries out the shards of a run in other processes.

    Attributes:
        run: the name of the run's files in the content store.
        workers: the largest number of shards in flight.
    """

    run: str
    workers: int

    def find_submitted(self) -> Mapping[int, Digest]:
        """Return all shards that earlier attempts of this run submitted, with the digests of their inputs.

        The digests come from Prefect and not from the store, because more people can write to the store than can start runs.
        """

    def prepare_planning(self) -> None:
        """Prepare requests of this process, after shards of an earlier attempt have sent requests."""

    def carry_out(self, shards: Mapping[int, Digest], files: RunFiles) -> Iterator[tuple[int, DistError | None]]:
        """Yield each shard as it ends: with None if its result is in the store, otherwise with the reason.

        `shards` has the digest of the input of each shard.

        Raises:
            DistError: the shards that have not ended cannot be carried out.
        """

    def read_result(self, number: int, files: RunFiles) -> bytes | None:
        """Return the result of a shard without its signature, or None if the shard has no result.

        Raises:
            Corrupt: the result is not from the shard.
            DistError: the store.
        """


class ShardResult(Protocol):
    """The result of a shard."""

    @property
    def stats(self) -> TransferStats:
        """Return the counts of the shard's transfers."""

    @property
    def tasks(self) -> int:
        """Return the number of the shard's units of work."""

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """Return the quotas that registries reported to the shard, by host."""


R = TypeVar("R", bound=ShardResult)
R_co = TypeVar("R_co", bound=ShardResult, covariant=True)


class ShardInput(Protocol[R_co]):
    """The input of a shard with a result of the type `R_co`."""

    def to_json(self) -> bytes:
        """Return the content of the input's file."""

    def parse_result(self, raw: bytes, *, at: str) -> R_co:
        """Return the result in a file.

        Raises:
            DistError: the file is damaged, or has the result of another input.
        """


class Division:
    """The shards of one run.

    Attributes:
        stats: the counts of the transfers of all shards that ended.
        quotas: the quotas that registries reported to the shards, by host.
    """

    def __init__(self, pool: Pool, runner: ShardRunner, notify: Notify) -> None:
        self._pool, self._runner, self._notify = pool, runner, notify
        self._files = pool.session.store.open_run(runner.run)
        self._first_number = 0
        self.stats = TransferStats()
        self.quotas = dict[str, Quota]()

    @property
    def workers(self) -> int:
        """The largest number of shards in flight."""
        return self._runner.workers

    def finish_earlier(self) -> None:
        """Finish the shards of an earlier attempt of this run, which ended without merging their results.

        New shards get numbers that no attempt has used: Prefect returns an ended flow run for its number, also if the attempt
        or gc has removed the files.
        """
        names, submitted = self._files.list_names(), self._runner.find_submitted()
        written = {number for number in map(parse_input_name, names) if number is not None}
        self._first_number = max(written.union(submitted), default=-1) + 1
        open_numbers = sorted(number for number in written & submitted.keys() if name_result(number) not in names)
        if unfinished := {number: submitted[number] for number in open_numbers}:
            self._notify(Note(f"finishing {format_count(len(unfinished), 'shard')} of an earlier attempt"))
            for _ in self._watch(unfinished):
                self._pool.session.cancel.check()
            self._runner.prepare_planning()

    def carry_out(self, inputs: Sequence[ShardInput[R]], work: str) -> Iterator[tuple[int, R | DistError]]:
        """Carry out shards. Yield the place of each input, and the result or the reason why the shard has no result.

        `work` describes the work of all shards, such as "12 images".
        """
        first = self._first_number
        self._first_number += len(inputs)
        if inputs:
            shards = format_count(len(inputs), "shard")
            self._notify(Note(f"{work} in {shards}, at most {self._runner.workers} at a time"))
        for ended, (number, error) in enumerate(self._run(dict(enumerate(inputs, start=first))), start=1):
            progress = f"{ended} of {format_count(len(inputs), 'shard')} ended"
            try:
                result = self._read_result(number, inputs[number - first], error)
            except DistError as exc:
                self._notify(Note(f"{progress}; shard {number} failed: {exc}"))
                yield number - first, exc.with_traceback(None)
                continue
            self._notify(Note(progress))
            self.stats = add_stats([self.stats, result.stats])
            self.quotas |= result.quotas
            self._pool.runs += result.tasks
            yield number - first, result

    def _run(self, inputs: Mapping[int, ShardInput[R]]) -> Iterator[tuple[int, DistError | None]]:
        """Yield each shard as it ends. After an error, yield the error for each shard that has not ended.

        The results of the other shards are kept, and the run records and reports them.
        """
        unfinished = set(inputs)
        try:
            digests = {number: self._write_input(number, one) for number, one in inputs.items()}
            for number, error in self._watch(digests):
                unfinished.discard(number)
                yield number, error
        except DistError as exc:
            reason = exc.with_traceback(None)
            yield from ((number, reason) for number in sorted(unfinished))

    def _watch(self, shards: Mapping[int, Digest]) -> Iterator[tuple[int, DistError | None]]:
        """Yield each shard as it ends. Shards may wait for days, so gc must see that their parent is alive."""
        with self._files.show_life(PARENT_ALIVE):
            yield from self._runner.carry_out(shards, self._files)

    def _write_input(self, number: int, one: ShardInput[ShardResult]) -> Digest:
        """Write the input of a shard, and return the digest of the file."""
        raw = one.to_json()
        self._files.write(name_input(number), raw)
        return Digest.of(raw)

    def _read_result(self, number: int, one: ShardInput[R], error: DistError | None) -> R:
        """Return the result of a shard.

        Raises:
            DistError: `error` if the result is missing; the result is damaged; or an error of the store.
        """
        at = f"{self._files.url}/{name_result(number)}"
        raw = self._runner.read_result(number, self._files)
        if raw is None:
            raise error or Unavailable("the shard ended without a result; run again to resume", subject=at)
        return one.parse_result(raw, at=at)

    def remove_files(self) -> None:
        """Remove the files of the run. If the store refuses, the files stay until gc removes them."""
        try:
            self._files.remove()
        except DistError as exc:
            self._notify(Note(f"files of the run stay in the content store until gc removes them: {exc}"))


def add_stats(stats: Iterable[TransferStats]) -> TransferStats:
    """Return the sums of counts."""
    found = [asdict(one) for one in stats]
    return TransferStats(**{name: sum(one[name] for one in found) for name in TransferStats.__dataclass_fields__})
