"""One shard of a divided run: carries out the work in a file of the content store, and writes the results there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from prefect_dist.mirror.applying import Applying
from prefect_dist.mirror.check import build_check_report
from prefect_dist.mirror.check_shard_files import CheckShardInput, CheckShardResult
from prefect_dist.mirror.checking import Checking
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.loading import load_config
from prefect_dist.mirror.lock_config import parse_audited
from prefect_dist.mirror.mirror_shard_files import MirrorShardInput, MirrorShardResult
from prefect_dist.mirror.plan import Plan
from prefect_dist.mirror.report import ReportBuilder, RunReport
from prefect_dist.mirror.resources import RunResources
from prefect_dist.mirror.results import build_mirror_report
from prefect_dist.mirror.run_spec import RunContext, RunSpec
from prefect_dist.mirror.scopes import MirrorScopes
from prefect_dist.mirror.shard_format import read_kind, sign
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Corrupt, InvalidInput, NotFound
from prefect_dist.remotes import Hosts
from prefect_dist.storage import open_store
from prefect_dist.storage.runs import RunFiles, name_alive, name_input, name_result
from prefect_dist.transfer.repositories import NewRepositories
from prefect_dist.transfer.session import SessionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """The work of one shard. `run_name` names the files of the divided run in the content store. `key` signs the result.

    `wanted` is the input of the shard. `entries` are the entries of the configuration, which a shard of a check needs.
    `is_again` is true if an earlier attempt of the shard may have published images.
    """

    run_name: str
    number: int
    key: str
    wanted: MirrorShardInput | CheckShardInput
    entries: tuple[Entry, ...] = ()
    is_again: bool = False

    @property
    def planning(self) -> float:
        """Return the share of planning in the work."""
        return 0

    def list_hosts(self, session: SessionSpec, /) -> frozenset[str]:
        """Return the registries that the shard sends requests to."""
        return self.wanted.list_hosts(is_offline=session.offline)

    def run(self, context: RunContext, /) -> RunReport:
        """Carry out the work, and write the results.

        Raises:
            InvalidInput: the configuration has no entry for a target of a check.
            DistError: the result cannot be written.
        """
        scopes = context.scopes.open_mirror(f"shard {self.number}")
        result: MirrorShardResult | CheckShardResult
        if isinstance(self.wanted, CheckShardInput):
            result, report = self._check(self.wanted, context, scopes)
        else:
            result, report = self._mirror(self.wanted, context, scopes)
        files = context.pool.session.store.open_run(self.run_name)
        files.write(name_result(self.number), sign(result.to_json(), self.key))
        return report

    def _check(self, wanted: CheckShardInput, context: RunContext, scopes: MirrorScopes) -> tuple[CheckShardResult, RunReport]:
        """Check targets. Return the result and the report of the shard.

        Raises:
            InvalidInput: the configuration has no entry for a target.
        """
        pool, builder = context.pool, ReportBuilder("check", context.pool)
        is_repairing = wanted.is_repairing
        checking = Checking(pool, scopes, context.notify, context.observer, self.entries, is_repairing=is_repairing)
        if missing := wanted.targets.difference(checking.select(wanted.records)):
            why = "no entry selects this target; this worker needs the configuration of the parent run"
            raise InvalidInput(why, subject=min(map(str, missing)))
        found = checking.check(wanted.records)
        result = CheckShardResult(
            results=found,
            is_stopped=pool.session.cancel.reason is not None,
            stats=checking.stats,
            tasks=pool.runs,
            quotas=checking.quotas,
        )
        return result, build_check_report(builder, found, stats=checking.stats, unchecked=0, configuration=None)

    def _mirror(
        self, wanted: MirrorShardInput, context: RunContext, scopes: MirrorScopes
    ) -> tuple[MirrorShardResult, RunReport]:
        """Mirror images. Return the result and the report of the shard.

        This attempt does not know which tags an earlier attempt has set. So it claims no repository as new, and reports that
        the registry may have each tag: the intentions stay in the lock file.
        """
        pool, builder = context.pool, ReportBuilder("mirror", context.pool)
        pool.session.memo(NewRepositories).accept(frozenset() if self.is_again else wanted.new)
        applying = Applying(pool, scopes, context.notify, context.observer)
        applying.add(wanted.images, dict.fromkeys(wanted.images))
        results = applying.run()
        if self.is_again:
            results = replace(results, begun=wanted.targets)
        result = MirrorShardResult(results=results, stats=applying.stats, tasks=pool.runs, quotas=applying.quotas)
        plan = Plan(images=wanted.images, is_dry=False)
        return result, build_mirror_report(builder, plan, results, stats=applying.stats, configuration=None)


def make_shard_run(
    resources: RunResources,
    *,
    run: str,
    shard: int,
    digest: str,
    key: str,
    workers: int,
    config: str | None,
    concurrency: int,
    retries: int,
    offline: bool,
) -> RunSpec:
    """Return the run for the parameters of the flow `mirror-shard`. `workers` shards share the limits of each registry.

    Raises:
        InvalidInput: a parameter or the configuration is invalid.
        NotFound: the file of the shard is missing.
        Corrupt: the file of the shard has another digest.
        DistError: the store cannot be read.
    """
    entries = tuple[Entry, ...]()
    if config is None:
        session = resources.make_session()
    else:
        wanted = load_config(config, resources.blocks, parse_audited)
        session, entries = resources.make_mirror_session(wanted), (*wanted.entries, *wanted.seed)
    registries = replace(session.registries, hosts=_share_limits(session.registries.hosts, workers))
    session = replace(session, registries=registries, offline=offline, is_shared=True)
    expected = Digest.parse(digest, prefix="digest of the shard: ")
    with open_store(session.store, options=session.store_options) as store:
        files = store.open_run(run)
        work = read_input(files, shard, expected)
        is_again = files.read_modification_time(name_alive(shard)) is not None
    job = ShardJob(run_name=run, number=shard, key=key, wanted=work, entries=entries, is_again=is_again)
    return RunSpec(job=job, session=session, window=concurrency, retries=retries)


def read_input(files: RunFiles, number: int, digest: Digest) -> MirrorShardInput | CheckShardInput:
    """Return the input of a shard, if the file has the digest that the parent passed.

    The file names sources, targets and the programs of gates, and more people can write to the content store than can start
    runs. So a worker uses only the file that the parent wrote.

    Raises:
        NotFound: the file of the shard is missing.
        Corrupt: the file has another digest.
        InvalidInput, Unsupported: the file is from another version of this program.
        Denied, Unavailable: the file system.
    """
    name = name_input(number)
    raw, at = files.read(name), f"{files.url}/{name}"
    if raw is None:
        why = "the input of the shard is missing in this store; the worker must use the content store of the parent run"
        raise NotFound(why, subject=at)
    if (found := Digest.of(raw)) != digest:
        why = f"expected the digest {digest} from the parent run, got {found}; another program has changed the file; run again"
        raise Corrupt(why, subject=at)
    return (CheckShardInput if read_kind(raw, at=at) == "check" else MirrorShardInput).from_json(raw, at=at)


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
        store.open_run(run).show_life(name_alive(shard)),
    ):
        yield
