"""One shard of a divided mirror run: mirrors the images in a file of the content store, and writes the results there."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from prefect_dist.mirror.applying import Applying
from prefect_dist.mirror.loading import load_config
from prefect_dist.mirror.plan import Plan
from prefect_dist.mirror.report import ReportBuilder, RunReport
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.results import build_mirror_report
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.mirror.shard_files import ShardInput, ShardResult
from prefect_dist.mirror.skopeo import Dialect, choose_parser
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Corrupt, DistError, NotFound
from prefect_dist.remotes import Hosts
from prefect_dist.storage import open_store
from prefect_dist.storage.runs import RunFiles
from prefect_dist.transfer.session import SessionSpec

ALIVE_S = 20.0
"""The time between two writes of the file that shows that a shard is alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """The images of one shard. `run_name` names the files of the divided run in the content store.

    `digest` is the digest of the shard's file. The file names sources, targets and the programs of gates, and more people may
    be able to write to the content store than to start runs. So a worker uses only the file that the parent wrote.
    """

    run_name: str
    number: int
    digest: Digest
    hosts: frozenset[str]

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
            Corrupt: the file has another digest.
            InvalidInput, Unsupported: the file is from another version of this program.
        """
        pool, files = context.pool, context.pool.session.store.open_run(self.run_name)
        images = _read_input(files, self.number, self.digest).images
        builder = ReportBuilder("mirror", pool)
        applying = Applying(pool, context.scopes.open_mirror(f"shard {self.number}"), context.notify, context.observer)
        applying.add(images, dict.fromkeys(images))
        results = applying.run()
        result = ShardResult(results=results, stats=applying.stats, tasks=pool.runs)
        files.write(f"result-{self.number}.json", result.to_json())
        plan = Plan(images=images, is_dry=False)
        return build_mirror_report(builder, plan, results, stats=applying.stats, configuration=None)


def make_shard_run(
    resources: RunResources,
    *,
    run: str,
    shard: int,
    digest: str,
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
        Corrupt: the file of the shard has another digest.
        DistError: the store cannot be read.
    """
    if config is None:
        session = resources.make_session()
    else:
        session = resources.make_mirror_session(load_config(config, resources.blocks, choose_parser(dialect, to)))
    registries = replace(session.registries, hosts=_share_limits(session.registries.hosts, workers))
    session = replace(session, registries=registries, offline=offline, is_shared=True)
    job = _make_job(session, run, shard, Digest.parse(digest, prefix="digest of the shard: "))
    return RunSpec(job=job, session=session, window=concurrency, retries=retries)


def _make_job(session: SessionSpec, run: str, shard: int, digest: Digest) -> ShardJob:
    with open_store(session.store, options=session.store_options) as store:
        images = _read_input(store.open_run(run), shard, digest).images
    sources = set[str]() if session.offline else {image.item.source.host for image in images}
    targets = {action.target.host for image in images for action in image.actions}
    return ShardJob(run_name=run, number=shard, digest=digest, hosts=frozenset(sources | targets))


def _read_input(files: RunFiles, number: int, digest: Digest) -> ShardInput:
    name = f"shard-{number}.json"
    raw = files.read(name)
    if raw is None:
        why = "the file of the shard is missing; a shard needs the content store of its parent run"
        raise NotFound(why, subject=f"{files.url}/{name}")
    if (found := Digest.of(raw)) != digest:
        why = f"expected the digest {digest} from the parent run, got {found}; another program has changed the file; run again"
        raise Corrupt(why, subject=f"{files.url}/{name}")
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
