"""Runs mirrors in tests: a configuration file, a store and a lock file in one directory, and the requests of each run."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qs

from prefect_dist.mirror import direct, yamlfile
from prefect_dist.mirror.check import check_mirror
from prefect_dist.mirror.config import Mirror, make_seed_mirror, parse_mirror
from prefect_dist.mirror.copying import make_copy_job, make_push_job
from prefect_dist.mirror.direct import SilentObserver, WholeFetch, WholeMirror
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.fetch import fetch_images
from prefect_dist.mirror.mirror_policy import MirrorObserver
from prefect_dist.mirror.plan import TargetAction
from prefect_dist.mirror.progress import add_callers_listener
from prefect_dist.mirror.render import message_line
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.run import MirrorJob, run_mirror
from prefect_dist.mirror.run_spec import RunSpec
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.reference import expand
from prefect_dist.remotes import RegistrySettings
from prefect_dist.transfer.events import ignore_event
from prefect_dist.transfer.session import SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool
from tests.fakes.registry import FakeRegistry
from tests.fakes.request import Recorded
from tests.flows.reports import outcomes, result_of
from tests.images import BuiltImage
from tests.peers.prefect import PrefectServer

_ENDS = {
    "complete": ("COMPLETED", "Completed"),
    "vetoed": ("COMPLETED", "Vetoed"),
    "failed": ("FAILED", "Failed"),
    "stopped": ("CANCELLED", "Cancelled"),
}


class Mirrors:
    """Runs flows with a configuration that each run may change. `flow_run` is the id of the last flow run."""

    def __init__(self, directory: Path, prefect: PrefectServer) -> None:
        self.directory, self._prefect = directory, prefect
        self.store = directory / "store"
        self.config, self.lock = directory / "mirror.yaml", directory / "mirror.lock.json"
        self.flow_run = ""
        self._seen: Counter[str] = Counter()

    def run(self, *sync: dict[str, Any], dry_run: bool = False, retries: int = 0, **settings: Any) -> RunReport:
        """Mirror with these entries of `sync` and other keys of the configuration, and return the report.

        Raises:
            DistError: the run ended without a report.
        """
        from prefect_dist.flows.mirror import mirror

        self.config.write_text(json.dumps({"sync": sync, **settings}))  # JSON is YAML
        report = self._run_flow(partial(mirror, str(self.config), str(self.store), dry_run=dry_run, retries=retries))
        assert isinstance(report, RunReport), report
        return report

    def check(self, *, repair: bool = False, retries: int = 0) -> RunReport:
        """Check the targets of the last run, and return the report.

        Raises:
            DistError: the check ended without a report.
        """
        from prefect_dist.flows.check import check

        report = self._run_flow(partial(check, str(self.config), str(self.store), repair=repair, retries=retries))
        assert isinstance(report, RunReport), report
        return report

    def seed(self, *images: str, to: Sequence[FakeRegistry], retries: int = 0, **settings: Any) -> RunReport:
        """Seed images, and return the report.

        Raises:
            DistError: the run ended without a report.
        """
        from prefect_dist.flows.seed import seed

        places = [place.host for place in to]
        report = self._run_flow(
            partial(seed, images=list(images), to=places, store=str(self.store), retries=retries, **settings)
        )
        assert isinstance(report, RunReport), report
        return report

    def _run_flow(self, run: Callable[..., Any]) -> object:
        """Run a flow and return its report. The final state in Prefect must agree with the report."""
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: self._prefect.url}):
            state = run(return_state=True)
        report = result_of(state)
        if isinstance(report, DistError):
            raise report
        assert isinstance(report, RunReport), report
        assert ((state.type.value, state.name), state.message) == (_ENDS[report.status], message_line(report))
        self.flow_run = str(state.state_details.flow_run_id)
        return report

    def take_requests(self, *registries: FakeRegistry) -> list[Recorded]:
        """Return the requests that registries received since the last call for them."""
        found = []
        for registry in registries:
            requests = registry.requests
            found += requests[self._seen[registry.host] :]
            self._seen[registry.host] = len(requests)
        return found

    def read_lock(self) -> dict[str, dict[str, Any]]:
        """Return the records of the lock file by target."""
        images: dict[str, dict[str, Any]] = json.loads(self.lock.read_text())["images"]
        return images


class DirectMirrors(Mirrors):
    """Runs mirrors on the thread pool, without Prefect. Tests of Prefect use `Mirrors`."""

    def __init__(self, directory: Path, observer: MirrorObserver | None = None) -> None:
        super().__init__(directory, cast("PrefectServer", None))
        self._observer = observer or SilentObserver()

    def run(self, *sync: dict[str, Any], dry_run: bool = False, retries: int = 0, **settings: Any) -> RunReport:
        """Return the report of a run; see `Mirrors.run`."""
        self.config.write_text(json.dumps({"sync": sync, **settings}))
        wanted = parse_mirror(yamlfile.read(str(self.config)))
        return self._mirror(
            wanted,
            wanted.entries,
            wanted.seed,
            flow="mirror",
            configuration=wanted.name,
            is_dry=dry_run,
            retries=retries,
        )

    def check(self, *, repair: bool = False, retries: int = 0) -> RunReport:
        """Return the report of a check; see `Mirrors.check`."""
        wanted = parse_mirror(yamlfile.read(str(self.config)))
        with self._pool(wanted, retries) as pool:
            return check_mirror(
                wanted, pool, WholeMirror(), add_callers_listener(ignore_event), self._observer, is_repairing=repair
            )

    def seed(self, *images: str, to: Sequence[FakeRegistry], retries: int = 0, **settings: Any) -> RunReport:
        """Return the report of a seed; see `Mirrors.seed`."""
        offline = settings.pop("offline", False)
        wanted = make_seed_mirror([place.host for place in to], images=images, **settings)
        return self._mirror(
            wanted, wanted.seed, (), flow="seed", configuration=None, is_dry=False, retries=retries, offline=offline
        )

    def _mirror(
        self,
        wanted: Mirror,
        entries: Sequence[Entry],
        others: Sequence[Entry],
        *,
        flow: Literal["mirror", "seed"],
        configuration: str | None,
        is_dry: bool,
        retries: int,
        offline: bool = False,
    ) -> RunReport:
        job = MirrorJob(flow=flow, configuration=configuration, entries=entries, others=others, lock=wanted.lock, is_dry=is_dry)
        with self._pool(wanted, retries, offline=offline) as pool:
            return run_mirror(job, pool, WholeMirror(), add_callers_listener(ignore_event), self._observer)

    def make_session_spec(self, wanted: Mirror) -> SessionSpec:
        """Return the specification of a session with the settings of a configuration."""
        return SessionSpec(
            store=str(self.store),
            registries=RegistrySettings(hosts=wanted.hosts),
            credentials=wanted.credentials,
            ways=() if wanted.way is None else (wanted.way,),
        )

    @contextmanager
    def _pool(self, wanted: Mirror, retries: int, *, offline: bool = False) -> Iterator[ThreadPool]:
        spec = replace(self.make_session_spec(wanted), offline=offline)
        with (
            open_session(spec, notify=add_callers_listener(ignore_event)) as session,
            ThreadPool(session, window=wanted.concurrency, retries=retries) as pool,
        ):
            yield pool


def fetch_directly(
    store: str,
    references: Sequence[str],
    *,
    platforms: Literal["all"] | Sequence[str] = "all",
    referrers: bool = False,
    concurrency: int = 8,
    retries: int = 3,
) -> RunReport:
    """Return the report of a fetch on the thread pool, without Prefect. The parameters are those of the flow."""
    wanted = None if platforms == "all" else tuple(map(Platform.parse, platforms))
    named = [Reference.parse(expand(text)) for text in dict.fromkeys(references)]
    notify = add_callers_listener(ignore_event)
    with (
        open_session(SessionSpec(store=store), notify=notify) as session,
        ThreadPool(session, window=concurrency, retries=retries) as pool,
    ):
        return fetch_images(named, pool, WholeFetch(), notify, platforms=wanted, referrers=referrers)


def push_directly(
    store: str, name: str, target: str, *, referrers: bool = False, concurrency: int = 8, retries: int = 0, **options: Any
) -> RunReport:
    """Return the report of a push on the thread pool, without Prefect. `options` are those of `make_push_job`."""
    job = make_push_job(name, target, referrers=referrers, **options)
    return run_directly(job, store, concurrency=concurrency, retries=retries)


def copy_directly(store: str, source: str, target: str, *, concurrency: int = 8, retries: int = 0, **options: Any) -> RunReport:
    """Return the report of a copy on the thread pool, without Prefect. `options` are those of `make_copy_job`."""
    return run_directly(make_copy_job(source, target, **options), store, concurrency=concurrency, retries=retries)


def run_directly(job: MirrorJob, store: str, *, concurrency: int = 8, retries: int = 0) -> RunReport:
    """Return the report of a job on the thread pool, without Prefect."""
    session = SessionSpec(store=store, offline=job.has_stored_source)
    spec = RunSpec(job=job, session=session, window=concurrency, retries=retries)
    return direct.run_directly(spec, add_callers_listener(ignore_event))


class Observed(SilentObserver):
    """Records the results that a mirror run notified, in the order of the notifications.

    An element of `seen` is a target and the errors of the target, without errors if the target has the image.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[str]]] = []

    def on_mirrored(self, action: TargetAction) -> None:
        """Record the success."""
        self.seen.append((str(action.target), []))

    def on_failed(self, action: TargetAction, errors: Sequence[DistError]) -> None:
        """Record the failure."""
        self.seen.append((str(action.target), list(map(str, errors))))


def image(source: FakeRegistry, target: FakeRegistry, name: str, **settings: Any) -> dict[str, Any]:
    """Return an entry for one image, with the same name at the target."""
    return {"type": "image", "source": f"{source.host}/{name}", "target": f"{target.host}/{name}", **settings}


def repository(source: FakeRegistry, *targets: FakeRegistry, **settings: Any) -> dict[str, Any]:
    """Return an entry for all images of the repository `app`. The repository is `copy` at the targets."""
    where = [f"{target.host}/copy" for target in targets]
    return {"type": "repository", "source": f"{source.host}/app", "targets": where, **settings}


def results(report: RunReport) -> dict[str, str]:
    """Return the outcome at each target, by repository and tag of the target."""
    return {target.partition("/")[2]: outcome for target, outcome in outcomes(report).items()}


def count_reads(requests: Iterable[Recorded]) -> Counter[str]:
    """Return the number of GET requests for each digest."""
    return Counter(one.path.rpartition("/")[2] for one in requests if one.method == "GET" and "/tags/" not in one.path)


def count_uploads(requests: Iterable[Recorded]) -> Counter[str]:
    """Return the number of uploads of each blob."""
    puts = (one for one in requests if one.method == "PUT" and "/uploads/" in one.path and one.status == 201)
    return Counter(parse_qs(one.query)["digest"][0] for one in puts)


def count_requests(requests: Iterable[Recorded]) -> Counter[str]:
    """Return the number of requests by "METHOD KIND". The kinds are manifests, blobs, tags and referrers."""
    return Counter(f"{one.method} {one.path.rsplit('/', 2)[1]}" for one in requests)


def find_missing(registry: FakeRegistry, repository: str, image: BuiltImage, tag: str | None = None) -> list[str]:
    """Return the digests of an image that are missing or different in a repository, and `tag` if it resolves differently."""
    missing = [digest for digest, data in image.blobs.items() if registry.blob(repository, digest) != data]
    missing += [m.digest for m in image.manifests if registry.manifest(repository, m.digest) != (m.media_type, m.raw)]
    root = image.manifests[-1]
    if tag is not None and registry.manifest(repository, tag) != (root.media_type, root.raw):
        missing.append(tag)
    return missing


def find_faulty_files(store: Path) -> list[str]:
    """Return the corrupt blobs of a store, and the files that transfers left."""
    blobs = (store / "blobs" / "sha256").iterdir()
    left = [str(path) for path in (store / "ingest").rglob("*") if path.is_file()]
    return left + [path.name for path in blobs if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]


def bytes_of(*built: BuiltImage) -> int:
    """Return the total size of the distinct content of some images."""
    content = {digest: data for image in built for digest, data in image.blobs.items()}
    content |= {manifest.digest: manifest.raw for image in built for manifest in image.manifests}
    return sum(map(len, content.values()))
