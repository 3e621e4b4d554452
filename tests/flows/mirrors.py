"""Mirrors in tests: a configuration in a file, its store and lock file beside it, and what registries were asked."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast
from urllib.parse import parse_qs

from prefect_dist.mirror import yamlfile
from prefect_dist.mirror.applying import Admit
from prefect_dist.mirror.check import check_mirror
from prefect_dist.mirror.config import Mirror, make_seed_mirror, parse_mirror
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.fetch import fetch_images
from prefect_dist.mirror.plan import Plan, PlannedImage, TargetAction
from prefect_dist.mirror.progress import add_callers_listener
from prefect_dist.mirror.render import message_line
from prefect_dist.mirror.report import RunReport
from prefect_dist.mirror.run import MirrorJob, run_mirror
from prefect_dist.ocispec import Platform, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.reference import expand
from prefect_dist.remotes import RegistrySettings
from prefect_dist.transfer.events import ignore_event
from prefect_dist.transfer.session import SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool
from prefect_dist.transfer.walk_state import ImageState
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
    """Runs a mirror, one time after the other, as its configuration is then. `flow_run` is the last one's id."""

    def __init__(self, directory: Path, prefect: PrefectServer) -> None:
        self.directory, self._prefect = directory, prefect
        self.store = directory / "store"
        self.config, self.lock = directory / "mirror.yaml", directory / "mirror.lock.json"
        self.flow_run = ""
        self._seen: Counter[str] = Counter()

    def run(self, *sync: dict[str, Any], dry_run: bool = False, retries: int = 0, **said: Any) -> RunReport:
        """The report of a run with these entries of `sync`, and what else the file is to say.

        Raises:
            DistError: what ended the run before it could report.
        """
        from prefect_dist.flows.mirror import mirror

        self.config.write_text(json.dumps({"sync": sync, **said}))  # JSON is YAML
        report = self._ended(partial(mirror, str(self.config), str(self.store), dry_run=dry_run, retries=retries))
        assert isinstance(report, RunReport), report
        return report

    def check(self, *, repair: bool = False, retries: int = 0) -> RunReport:
        """The report of a check of what the last run brought.

        Raises:
            DistError: what ended the check before it could report.
        """
        from prefect_dist.flows.check import check

        report = self._ended(partial(check, str(self.config), str(self.store), repair=repair, retries=retries))
        assert isinstance(report, RunReport), report
        return report

    def seed(self, *images: str, to: Sequence[FakeRegistry], retries: int = 0, **said: Any) -> RunReport:
        """The report of a seed of images.

        Raises:
            DistError: what ended the run before it could report.
        """
        from prefect_dist.flows.seed import seed

        places = [place.host for place in to]
        report = self._ended(partial(seed, images=list(images), to=places, store=str(self.store), retries=retries, **said))
        assert isinstance(report, RunReport), report
        return report

    def _ended(self, run: Callable[..., Any]) -> object:
        """The report of a run, of which Prefect knows the same."""
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

    def asked(self, *registries: FakeRegistry) -> list[Recorded]:
        """What registries were asked since this was last called for them."""
        found = []
        for registry in registries:
            requests = registry.requests
            found += requests[self._seen[registry.host] :]
            self._seen[registry.host] = len(requests)
        return found

    def locked(self) -> dict[str, dict[str, Any]]:
        """What the lock file says, by target."""
        images: dict[str, dict[str, Any]] = json.loads(self.lock.read_text())["images"]
        return images


class DirectMirrors(Mirrors):
    """Runs mirrors on a pool of threads, without Prefect. Prefect's part is tested with `Mirrors`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, cast("PrefectServer", None))

    def run(self, *sync: dict[str, Any], dry_run: bool = False, retries: int = 0, **said: Any) -> RunReport:
        """Return the report of a run; see `Mirrors.run`."""
        self.config.write_text(json.dumps({"sync": sync, **said}))
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
            return check_mirror(wanted, pool, OneScope(), add_callers_listener(ignore_event), Unobserved(), is_repairing=repair)

    def seed(self, *images: str, to: Sequence[FakeRegistry], retries: int = 0, **said: Any) -> RunReport:
        """Return the report of a seed; see `Mirrors.seed`."""
        offline = said.pop("offline", False)
        wanted = make_seed_mirror([place.host for place in to], images=images, **said)
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
            return run_mirror(job, pool, OneScope(), add_callers_listener(ignore_event), Unobserved())

    @contextmanager
    def _pool(self, wanted: Mirror, retries: int, *, offline: bool = False) -> Iterator[ThreadPool]:
        registries = RegistrySettings(hosts=wanted.hosts)
        spec = SessionSpec(
            store=str(self.store),
            registries=registries,
            credentials=wanted.credentials,
            ways=() if wanted.way is None else (wanted.way,),
            offline=offline,
        )
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
    """Return the report of a fetch on a pool of threads, without Prefect. The parameters are those of the flow."""
    wanted = None if platforms == "all" else tuple(map(Platform.parse, platforms))
    named = [Reference.parse(expand(text)) for text in dict.fromkeys(references)]
    notify = add_callers_listener(ignore_event)
    with (
        open_session(SessionSpec(store=store), notify=notify) as session,
        ThreadPool(session, window=concurrency, retries=retries) as pool,
    ):
        return fetch_images(named, pool, FetchScope(), notify, platforms=wanted, referrers=referrers)


class FetchScope:
    """Leaves all images in one scope."""

    def divide(self, images: Sequence[ImageState]) -> None:
        """Leave them."""

    def end_image(self, image: ImageState) -> None:
        """Count nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class OneScope:
    """Admits all images to the walk at once."""

    def divide(self, images: Sequence[tuple[ImageState, PlannedImage]], admit: Admit) -> None:
        """Admit all images."""
        admit([image for image, _ in images])

    def end_image(self, image: ImageState, *, is_vetoed: bool = False) -> None:
        """Count nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Unobserved:
    """Ignores what a mirror reports while it runs."""

    def on_begin(self) -> None:
        """Ignore it."""

    def on_plan(self, plan: Plan) -> None:
        """Ignore it."""

    def on_mirrored(self, action: TargetAction) -> None:
        """Ignore it."""

    def on_failed(self, action: TargetAction, errors: Sequence[DistError]) -> None:
        """Ignore it."""


def image(source: FakeRegistry, target: FakeRegistry, name: str, **said: Any) -> dict[str, Any]:
    """An entry for one image, which is called the same at the target."""
    return {"type": "image", "source": f"{source.host}/{name}", "target": f"{target.host}/{name}", **said}


def repository(source: FakeRegistry, *targets: FakeRegistry, **said: Any) -> dict[str, Any]:
    """An entry for all images of `app`, which is `copy` at the targets."""
    where = [f"{target.host}/copy" for target in targets]
    return {"type": "repository", "source": f"{source.host}/app", "targets": where, **said}


def results(report: RunReport) -> dict[str, str]:
    """What came of each step, by repository and tag of its target."""
    return {target.partition("/")[2]: outcome for target, outcome in outcomes(report).items()}


def fetched(requests: Iterable[Recorded]) -> Counter[str]:
    """How often each digest was read."""
    return Counter(one.path.rpartition("/")[2] for one in requests if one.method == "GET" and "/tags/" not in one.path)


def uploaded(requests: Iterable[Recorded]) -> Counter[str]:
    """How often each blob was sent."""
    puts = (one for one in requests if one.method == "PUT" and "/uploads/" in one.path and one.status == 201)
    return Counter(parse_qs(one.query)["digest"][0] for one in puts)


def summed(requests: Iterable[Recorded]) -> Counter[str]:
    """How many requests there were of each kind: METHOD and manifests, blobs, tags or referrers."""
    return Counter(f"{one.method} {one.path.rsplit('/', 2)[1]}" for one in requests)


def lacking(registry: FakeRegistry, repository: str, image: BuiltImage, tag: str | None = None) -> list[str]:
    """What a repository has not of an image, byte for byte; `tag` if it does not stand for it."""
    missing = [digest for digest, data in image.blobs.items() if registry.blob(repository, digest) != data]
    missing += [m.digest for m in image.manifests if registry.manifest(repository, m.digest) != (m.media_type, m.raw)]
    root = image.manifests[-1]
    if tag is not None and registry.manifest(repository, tag) != (root.media_type, root.raw):
        missing.append(tag)
    return missing


def wrong(store: Path) -> list[str]:
    """Blobs of a store that are not what they are called, and what was left of transfers."""
    blobs = (store / "blobs" / "sha256").iterdir()
    left = [str(path) for path in (store / "ingest").rglob("*") if path.is_file()]
    return left + [path.name for path in blobs if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]


def bytes_of(*built: BuiltImage) -> int:
    """The bytes of all distinct content of some images."""
    content = {digest: data for image in built for digest, data in image.blobs.items()}
    content |= {manifest.digest: manifest.raw for image in built for manifest in image.manifests}
    return sum(map(len, content.values()))
