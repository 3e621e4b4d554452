"""One shard of a divided mirror run: mirrors the images in a file of the content store, and writes the results there."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from prefect_dist.mirror.applying import Applying
from prefect_dist.mirror.loading import load_config
from prefect_dist.mirror.plan import Plan, PlannedImage
from prefect_dist.mirror.report import ReportBuilder, RunReport
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.results import build_mirror_report
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.mirror.shard_files import ShardInput, ShardResult
from prefect_dist.mirror.skopeo import Dialect, choose_parser
from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound
from prefect_dist.remotes import Hosts
from prefect_dist.storage import open_store
from prefect_dist.storage.runs import RunFiles
from prefect_dist.transfer.gate import Gate
from prefect_dist.transfer.session import SessionSpec

ALIVE_S = 20.0
"""The time between two writes of the file that shows that a shard is alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """The images of one shard. `run_name` names the files of the divided run in the content store.

    `gates` are the gates of the configuration. A gate runs a program, so the file of a shard may name no other gate: more
    people may be able to write to the content store than to the configuration.
    """

    run_name: str
    number: int
    hosts: frozenset[str]
    gates: frozenset[Gate] = frozenset()

    @property
    def planning(self) -> float:
        """Return the share of planning in the work."""
        return 0

    def list_hosts(self, _session: SessionSpec, /) -> frozenset[str]:
        """Return the registries that the shard sends requests to."""
        return self.hosts

    def run(self, context: RunContext, /) -> RunReport:
        """Mirror the images, and write the results.

        Raises:
            NotFound: the file of the shard is missing.
            InvalidInput, Unsupported: the file is damaged, or names a gate that the configuration lacks.
        """
        pool, files = context.pool, context.pool.session.store.open_run(self.run_name)
        images = _read_input(files, self.number).images
        self._check_gates(images, at=files.url)
        builder = ReportBuilder("mirror", pool)
        applying = Applying(pool, context.scopes.open_mirror(f"shard {self.number}"), context.notify, context.observer)
        applying.add(images, dict.fromkeys(images))
        results = applying.run()
        result = ShardResult(results=results, stats=applying.stats, tasks=pool.runs)
        files.write(f"result-{self.number}.json", result.to_json())
        plan = Plan(images=images, is_dry=False)
        return build_mirror_report(builder, plan, results, stats=applying.stats, configuration=None)

    def _check_gates(self, images: Iterable[PlannedImage], *, at: str) -> None:
        if {image.item.entry.gate for image in images}.difference(self.gates, (None,)):
            why = "a gate of the shard is not in the configuration that this worker reads; run again"
            raise InvalidInput(why, subject=at)


def make_shard_run(
    resources: RunResources,
    *,
    run: str,
    shard: int,
    workers: int,
    config: str | None,
    concurrency: int,
    retries: int,
    offline: bool,
    dialect: Dialect,
    to: Sequence[str],
) -> RunSpec:
    """Return the run for the parameters of the flow `mirror-shard`. `workers` shards share the limits of each registry.

    Raises:
        InvalidInput: a parameter or the configuration is invalid.
        NotFound: the file of the shard is missing.
        DistError: the store cannot be read.
    """
    gates = frozenset[Gate]()
    if config is None:
        session = resources.make_session()
    else:
        wanted = load_config(config, resources.blocks, choose_parser(dialect, to))
        session = resources.make_mirror_session(wanted)
        gates = frozenset(entry.gate for entry in (*wanted.entries, *wanted.seed) if entry.gate is not None)
    registries = replace(session.registries, hosts=_share_limits(session.registries.hosts, workers))
    session = replace(session, registries=registries, offline=offline, is_shared=True)
    return RunSpec(
        job=replace(_make_job(session, run, shard), gates=gates), session=session, window=concurrency, retries=retries
    )


def _make_job(session: SessionSpec, run: str, shard: int) -> ShardJob:
    with open_store(session.store, options=session.store_options) as store:
        images = _read_input(store.open_run(run), shard).images
    sources = set[str]() if session.offline else {image.item.source.host for image in images}
    targets = {action.target.host for image in images for action in image.actions}
    return ShardJob(run_name=run, number=shard, hosts=frozenset(sources | targets))


def _read_input(files: RunFiles, number: int) -> ShardInput:
    name = f"shard-{number}.json"
    raw = files.read(name)
    if raw is None:
        why = "the file of the shard is missing; a shard needs the content store of its parent run"
        raise NotFound(why, subject=f"{files.url}/{name}")
    return ShardInput.from_json(raw, at=f"{files.url}/{name}")


def _share_limits(hosts: Hosts, workers: int) -> Hosts:
    """Return settings in which each registry has this process's share of its limits."""
    named = {
        host: replace(
            settings,
            in_flight=None if settings.in_flight is None else max(1, settings.in_flight // workers),
            per_second=None if settings.per_second is None else settings.per_second / workers,
        )
        for host, settings in hosts.named.items()
    }
    return replace(hosts, named=named)


@contextmanager
def show_life(session: SessionSpec, *, run: str, shard: int) -> Iterator[None]:
    """Write a file of a shard every 20 s during this block, so that the parent notices the end of this process.

    The block contains the whole run: a shard may have to wait for the slots of a registry before its session is opened.

    Raises:
        InvalidInput: the store cannot be used.
    """
    with (
        open_store(session.store, options=session.store_options) as store,
        _write_repeatedly(store.open_run(run), f"alive-{shard}.json"),
    ):
        yield


@contextmanager
def _write_repeatedly(files: RunFiles, name: str) -> Iterator[None]:
    over = threading.Event()

    def write() -> None:
        while True:
            with suppress(DistError):  # a store that is away for a minute only looks silent
                files.write(name, b"{}")
            if over.wait(ALIVE_S):
                return

    thread = threading.Thread(target=write, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
