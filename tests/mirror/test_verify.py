"""The verification of a store: its progress, and the repair on the same pool and session."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from prefect_dist.cli.display import LiveDisplay, PlainLines
from prefect_dist.mirror.direct import WholeFetch
from prefect_dist.mirror.progress import ProgressCounter
from prefect_dist.mirror.report import NameRow, RunReport
from prefect_dist.mirror.verify import run_verify
from prefect_dist.ocispec import Digest
from prefect_dist.remotes import Quota
from prefect_dist.storage import open_store
from prefect_dist.transfer.cancellation import CancelToken, use_token
from prefect_dist.transfer.events import BlobsHashed, Event, ImageEnded, combine_listeners
from prefect_dist.transfer.session import SessionSpec, open_session
from prefect_dist.transfer.threads import ThreadPool
from tests import images
from tests.fakes.faults import Answer, Fault, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import fetch_directly
from tests.flows.reports import error_lines
from tests.storage.conformance import Place, blob_path

ONE, OTHER = images.image(870, layers=1), images.image(871, layers=1)
LAYER = list(ONE.blobs)[-1]
STORED = {**ONE.blobs, **OTHER.blobs}
COUNT, SIZE = len(STORED) + 2, sum(map(len, STORED.values())) + ONE.root.size + OTHER.root.size


class Watched:
    """A verification with all of its listeners."""

    def __init__(self) -> None:
        self.events = list[Event]()
        self.counter = ProgressCounter()
        self._console = Console(width=200, file=io.StringIO())
        self._live = LiveDisplay(self._console, "downloading")
        self.footers = list[str]()
        self._plain = io.StringIO()

    def verify(self, place: Place, repair: Literal["all"] | Sequence[str] = ()) -> RunReport:
        lines = PlainLines(Console(width=200, file=self._plain))
        notify = combine_listeners(self.events.append, self.counter, self._live, lines, self._take_footer)
        with (
            open_session(SessionSpec(store=place.url), notify=notify) as session,
            ThreadPool(session, window=2, retries=0) as pool,
        ):
            return run_verify(pool, WholeFetch(), notify, repair=repair)

    @property
    def lines(self) -> list[str]:
        return self._plain.getvalue().splitlines()

    @property
    def hashed(self) -> list[BlobsHashed]:
        return [event for event in self.events if isinstance(event, BlobsHashed)]

    def _take_footer(self, _: Event) -> None:
        with self._console.capture() as captured:
            self._console.print(self._live)
        self.footers.append(captured.get().splitlines()[-1])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(url=str(tmp_path / "store"))


def fill(place: Place, registry: FakeRegistry) -> tuple[str, str]:
    """Fetch two images, the second for one platform only. Return their names."""
    images.load(registry, "one", ONE, "v1")
    images.load(registry, "other", OTHER, "v1")
    names = f"{registry.host}/one:v1", f"{registry.host}/other:v1"
    fetch_directly(place.url, [names[0]])
    fetch_directly(place.url, [names[1]], platforms=["linux/amd64"])
    return names


def test_each_listener_shows_the_hashed_blobs(place: Place) -> None:
    with FakeRegistry() as registry:
        fill(place, registry)
        before = len(registry.requests)
        watched = Watched()
        report = watched.verify(place)
        assert len(registry.requests) == before
    assert (report.status, report.counts["ok"], report.counts["fetched_bytes"]) == ("complete", COUNT, 0)
    assert watched.hashed == [
        BlobsHashed(count=0, total=COUNT, failed=0, size=0, total_size=SIZE),
        BlobsHashed(count=COUNT, total=COUNT, failed=0, size=SIZE, total_size=SIZE),
    ]
    assert watched.lines[0].startswith(f"0 of {COUNT} blobs hashed, 0 B of ")
    assert watched.lines[-1] == watched.counter.words()
    assert [footer.rpartition("  ")[2] for footer in watched.footers] == watched.lines
    assert (watched.counter.fraction(), watched.counter.lacks()) == (1, False)


def test_blobs_that_cannot_be_hashed_are_failed_work(place: Place) -> None:
    with FakeRegistry() as registry:
        fill(place, registry)
    place.plant(blob_path(Digest.parse(LAYER)), b"wrong")
    place.plant("quarantine", b"")  # no directory
    watched = Watched()
    report = watched.verify(place)
    assert report.status == "failed"
    assert (watched.counter.fraction(), watched.counter.lacks()) == (0, True)
    assert watched.lines[-1].startswith(f"0 of {COUNT} blobs hashed, {COUNT} failed, 0 B of ")


def test_a_stopped_verification_hashes_and_repairs_nothing(place: Place) -> None:
    with FakeRegistry() as registry:
        fill(place, registry)
        place.remove(blob_path(Digest.parse(LAYER)))
        before = len(registry.requests)
        cancel, watched = CancelToken(), Watched()
        cancel.set("Ctrl-C")
        with use_token(cancel):
            report = watched.verify(place, "all")
        assert len(registry.requests) == before
    assert report.status == "stopped"
    assert watched.counter.words().startswith(f"0 of {COUNT - 1} blobs hashed, 0 B of ")


def test_a_repair_runs_in_the_session_of_the_verification(place: Place) -> None:
    quota = WithHeaders((("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "42;w=21600")))
    with FakeRegistry() as registry:
        names = fill(place, registry)
        for image in (ONE, OTHER):
            place.remove(blob_path(Digest.parse(list(image.blobs)[-1])))
        place.plant("index.json", json.dumps({"schemaVersion": 2, "manifests": []}).encode())
        registry.inject(Fault(method="GET", path=".*/blobs/.*", nth=None, action=quota))
        before = len(registry.requests)
        watched = Watched()

        report = watched.verify(place, "all")

        requests = [f"{one.method} {one.path}" for one in registry.requests[before:] if "/blobs/" in one.path]
        host = registry.host
    assert [(row.name, row.outcome) for row in report.select(NameRow)] == [(name, "repaired") for name in names]
    layers = {f"GET /v2/{name}/blobs/{list(image.blobs)[-1]}" for name, image in (("one", ONE), ("other", OTHER))}
    assert sorted(requests) == sorted(layers)
    assert report.counts["fetched_bytes"] == len(ONE.blobs[LAYER]) + len(OTHER.blobs[list(OTHER.blobs)[-1]])
    assert report.quotas == {host: Quota(limit=100, remaining=42, window_s=21600)}
    assert {one["digest"] for one in json.loads(place.files()["index.json"])["manifests"]} == {
        ONE.root.digest,
        OTHER.root.digest,
    }
    assert sorted(event.report.name for event in watched.events if isinstance(event, ImageEnded)) == sorted(names)
    assert (watched.counter.fraction(), watched.counter.lacks()) == (1, False)
    assert open_store(place.url).names.get(names[0]).platforms is None
    (platform,) = open_store(place.url).names.get(names[1]).platforms or ()
    assert str(platform) == "linux/amd64"


def test_a_failed_repair_is_an_error_of_the_image_and_other_images_are_repaired(place: Place) -> None:
    with FakeRegistry() as registry:
        one, other = fill(place, registry)
        for image in (ONE, OTHER):
            place.remove(blob_path(Digest.parse(list(image.blobs)[-1])))
        registry.inject(Fault(path=f".*/blobs/{LAYER}", nth=None, action=Answer(404)))
        watched = Watched()
        report = watched.verify(place, "all")
    assert {row.name: row.outcome for row in report.select(NameRow)} == {one: "damaged", other: "repaired"}
    assert (report.status, watched.counter.lacks()) == ("failed", True)
    assert [line for line in error_lines(report) if "not found" in line and line.startswith(f"{one}: ")]


def test_only_the_given_names_are_repaired(place: Place) -> None:
    with FakeRegistry() as registry:
        one, other = fill(place, registry)
        for image in (ONE, OTHER):
            place.remove(blob_path(Digest.parse(list(image.blobs)[-1])))
        before = len(registry.requests)
        report = Watched().verify(place, [other])
        assert {request.path.split("/")[2] for request in registry.requests[before:]} == {"other"}
    assert {row.name: row.outcome for row in report.select(NameRow)} == {one: "damaged", other: "repaired"}
