"""Divided runs whose shards run in threads, each with its own resources, through files."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect_dist.mirror import yamlfile
from prefect_dist.mirror.check import check_mirror
from prefect_dist.mirror.config import parse_mirror
from prefect_dist.mirror.direct import SilentObserver, WholeMirror, WholeRun
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.progress import ProgressCounter
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.run import MirrorJob, run_mirror
from prefect_dist.mirror.run_spec import RunContext
from prefect_dist.mirror.shard_format import sign, verify
from prefect_dist.mirror.shard_job import ShardJob, read_input
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import DistError, Unavailable
from prefect_dist.storage.runs import RunFiles
from prefect_dist.transfer.events import Event, Note, ignore_event
from prefect_dist.transfer.session import SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool
from tests.flows.mirrors import DirectMirrors

_KEY = "a key"


@dataclass
class ThreadShards:
    """Carries out shards in threads.

    `lost` are the shards whose process dies before it writes a result. `inputs` and `results` change the content of files.
    `error` ends the runner after the first shard. `steps` are the calls of the parent. `stopped` shards get a SIGTERM at once.
    `again` are the shards that an earlier attempt has begun.
    `submitted` are the shards that Prefect knows, and `ended` those whose flow run has ended, with its error: for their number,
    Prefect returns the ended flow run. `entries` are the entries of the configuration that the workers read.
    """

    spec: SessionSpec
    workers: int
    lost: frozenset[int]
    inputs: Mapping[int, Callable[[bytes], bytes]]
    results: Mapping[int, bytes]
    submitted: dict[int, Digest]
    ended: dict[int, DistError | None]
    steps: list[str]
    run: str = "run-1"
    error: DistError | None = None
    entries: tuple[Entry, ...] = ()
    stopped: frozenset[int] = frozenset()
    again: frozenset[int] = frozenset()

    def find_submitted(self) -> Mapping[int, Digest]:
        """Return the shards of earlier attempts."""
        return dict(self.submitted)

    def prepare_planning(self) -> None:
        """Note the step."""
        self.steps.append("plan")

    def carry_out(self, shards: Mapping[int, Digest], files: RunFiles) -> Iterator[tuple[int, DistError | None]]:
        """Yield each shard as it ends."""
        assert {f"shard-{number}.json" for number in shards} <= set(files.list_names())
        self.submitted |= shards
        self.steps.append(f"carry out {sorted(shards)}")
        for number, change in self.inputs.items():
            files.write(f"shard-{number}.json", change(files.read(f"shard-{number}.json") or b""))
        with ThreadPoolExecutor(self.workers) as executor:
            running = {executor.submit(self._run, number): number for number in shards if number not in self.lost}
            for done in as_completed(running):
                error = done.result()
                if error is None and (replaced := self.results.get(running[done])) is not None:
                    files.write(f"result-{running[done]}.json", sign(replaced, _KEY))
                yield running[done], error
                if error is None and self.error is not None:
                    raise self.error
        for number in sorted(self.lost.intersection(shards)):
            yield number, Unavailable(f"shard {number} crashed three times")

    def read_result(self, number: int, files: RunFiles) -> bytes | None:
        """Return the result of a shard without its signature."""
        signed = files.read(f"result-{number}.json")
        return None if signed is None else verify(signed, _KEY, at=f"{files.url}/result-{number}.json")

    def _run(self, number: int) -> DistError | None:
        """Return the error of the flow run of a shard. A flow run that has ended does not run again."""
        if number not in self.ended:
            try:
                self._carry_out_shard(number)
            except DistError as exc:
                self.ended[number] = exc
            else:
                self.ended[number] = None
        return self.ended[number]

    def _carry_out_shard(self, number: int) -> None:
        with open_session(self.spec) as session, ThreadPool(session, window=4, retries=0) as pool:
            context = RunContext(pool=pool, scopes=WholeRun(), notify=ignore_event, observer=SilentObserver())
            if number in self.stopped:
                session.cancel.set("terminated by the worker")
            wanted = read_input(session.store.open_run(self.run), number, self.submitted[number])
            job = ShardJob(run_name=self.run, number=number, key=_KEY, wanted=wanted, entries=self.entries)
            replace(job, is_again=number in self.again).run(context)


class DividedMirrors(DirectMirrors):
    """Runs mirrors in shards. All runs are attempts of one flow run, and `submitted` and `ended` are its shards."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.submitted, self.ended = dict[int, Digest](), dict[int, DistError | None]()
        self.steps, self.notes = list[str](), list[str]()
        self.progress = ProgressCounter(planning=0.5)

    def _notify(self, event: Event, /) -> None:
        self.progress(event)
        if isinstance(event, Note):
            self.notes.append(event.text)

    def run(
        self,
        *sync: dict[str, Any],
        lost: Sequence[int] = (),
        results: Mapping[int, bytes] | None = None,
        inputs: Mapping[int, Callable[[bytes], bytes]] | None = None,
        place: str | None = None,
        options: Mapping[str, Any] | None = None,
        name: str = "run-1",
        workers: int = 2,
        error: DistError | None = None,
        stopped: Sequence[int] = (),
        again: Sequence[int] = (),
        **settings: Any,
    ) -> RunReport:
        """Return the report of the divided run `name`. `place` and `options` are those of another content store."""
        self.config.write_text(json.dumps({"sync": sync, **settings}))
        wanted = parse_mirror(yamlfile.read(str(self.config)))
        job = MirrorJob(flow="mirror", configuration=wanted.name, entries=wanted.entries, lock=wanted.lock, is_dry=False)
        spec = SessionSpec(store=place or str(self.store), store_options=options or {}, is_shared=True)
        with open_session(spec) as session, ThreadPool(session, window=4, retries=0) as pool:
            shards = ThreadShards(
                spec,
                workers,
                frozenset(lost),
                inputs or {},
                results or {},
                self.submitted,
                self.ended,
                self.steps,
                name,
                error,
            )
            shards.stopped, shards.again = frozenset(stopped), frozenset(again)
            return run_mirror(job, pool, WholeMirror(), self._notify, SilentObserver(), shards=shards)

    def check_divided(
        self,
        *,
        repair: bool = False,
        lost: Sequence[int] = (),
        results: Mapping[int, bytes] | None = None,
        workers: int = 2,
        read: Sequence[Entry] | None = None,
        stopped: Sequence[int] = (),
    ) -> RunReport:
        """Return the report of a divided check. `read` are the entries that the workers read in their configuration."""
        wanted = parse_mirror(yamlfile.read(str(self.config)))
        entries = tuple(wanted.entries if read is None else read)
        spec = replace(self.make_session_spec(wanted), is_shared=True)
        with open_session(spec) as session, ThreadPool(session, window=4, retries=0) as pool:
            shards = ThreadShards(
                spec, workers, frozenset(lost), {}, results or {}, self.submitted, self.ended, self.steps, entries=entries
            )
            shards.stopped = frozenset(stopped)
            return check_mirror(wanted, pool, WholeMirror(), self._notify, SilentObserver(), is_repairing=repair, shards=shards)
