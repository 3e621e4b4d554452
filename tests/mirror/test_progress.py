"""The events of a fetch, and the lines that the log gets for them."""

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from prefect_dist.cli.display import LiveDisplay
from prefect_dist.mirror.progress import LogWriter, ProgressCounter, notify_also
from prefect_dist.mirror.report import TargetRow
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import Corrupt, NotFound, Unavailable
from prefect_dist.transfer import threads
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import (
    ContentAdvanced,
    ContentFailed,
    ContentFinished,
    ContentFound,
    CorruptContent,
    Event,
    ImageEnded,
    ImageResolved,
    ImageResolving,
    Note,
    Planned,
    Recording,
    StepDone,
    StepFailed,
    Throttled,
    Unresolved,
    combine_listeners,
)
from prefect_dist.transfer.image_report import Failure, ImageReport
from tests import images
from tests.fakes.faults import Answer, Fault, Flip
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import DirectMirrors, fetch_directly, image

IMAGE = images.image(71, layers=1)
CONFIG, LAYER = IMAGE.blobs
NAME = "registry.example/app:v1"
DESCRIPTOR = Descriptor(media_type=images.OCI_LAYER, digest=Digest.of(b"content"), size=2048)


def events_of_fetch(store: Path, *faults: Fault) -> tuple[str, list[Event]]:
    """Fetch an image with one unit at a time. Return its reference and the events."""
    events = list[Event]()
    with FakeRegistry() as registry, notify_also(events.append):
        images.load(registry, "app", IMAGE, "v1")
        for fault in faults:
            registry.inject(fault)
        name = f"{registry.host}/app:v1"
        assert fetch_directly(str(store), [name], concurrency=1).status == "complete"
    return name, events


def test_each_object_of_a_fetch_has_its_events_in_order(tmp_path: Path) -> None:
    name, events = events_of_fetch(tmp_path)
    found = [event.descriptor for event in events if isinstance(event, ContentFound)]
    assert [str(descriptor.digest) for descriptor in found] == [IMAGE.root.digest, CONFIG, LAYER]
    for descriptor in found:
        of_descriptor = [event for event in events if getattr(event, "descriptor", None) == descriptor]
        first, *advanced, last = of_descriptor
        assert first == ContentFound(descriptor)
        assert [type(event) for event in advanced] == [ContentAdvanced] * len(advanced)
        assert sum(event.gained for event in advanced if isinstance(event, ContentAdvanced)) == descriptor.size
        assert isinstance(last, ContentFinished)
        assert last.receipt.status == "fetched"
    assert events[:3] == [ImageResolving(name), ImageResolved(name, found[0]), ContentFound(found[0])]
    last = events[-1]
    assert isinstance(last, ImageEnded)
    assert (last.report.name, last.report.failures) == (name, ())


def test_each_attempt_that_gets_corrupt_content_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_FIRST_DELAY_S", 0.0)
    name, events = events_of_fetch(tmp_path, Fault(path=f".*/blobs/{LAYER}", nth=1, action=Flip(3)))
    (corrupt,) = [event for event in events if isinstance(event, CorruptContent)]
    assert (str(corrupt.digest), corrupt.kind, corrupt.place) == (LAYER, "repository", name.removesuffix(":v1"))
    assert LAYER in str(corrupt.error)
    assert not [event for event in events if isinstance(event, ContentFailed)]


def test_a_registry_that_asks_to_wait_is_an_event(tmp_path: Path) -> None:
    busy = Answer(429, (("Retry-After", "1"),), b"")
    name, events = events_of_fetch(tmp_path, Fault(path=f".*/blobs/{LAYER}", nth=1, action=busy))
    (throttled,) = [event for event in events if isinstance(event, Throttled)]
    assert throttled.server == name.partition("/")[0]
    assert 0 < throttled.seconds <= 1.5


def test_each_event_has_at_most_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    failure = Failure(descriptor=None, error=NotFound("gone"))
    write = LogWriter(logging.getLogger("test"))
    with caplog.at_level(logging.INFO):
        for event in (
            Note("starting"),
            Planned(1, 2),
            Unresolved(NAME, "image"),
            ImageResolving(NAME),
            ImageResolved(NAME, DESCRIPTOR),
            ContentFound(DESCRIPTOR),
            ContentAdvanced(DESCRIPTOR, 1024, 1024),
            ContentFinished(DESCRIPTOR, Receipt("fetched", 2048, seconds=2)),
            ContentFinished(DESCRIPTOR, Receipt("existed")),
            ContentFailed(DESCRIPTOR, NotFound("gone")),
            CorruptContent(DESCRIPTOR.digest, "repository", "registry.example/app", Corrupt("other bytes")),
            StepDone(NAME, "published"),
            StepFailed(Unavailable("no lock file")),
            Recording(),
            ImageEnded(ImageReport(name=NAME, root=DESCRIPTOR, fetched=1)),
            ImageEnded(ImageReport(name=NAME, root=DESCRIPTOR, failures=(failure, failure))),
        ):
            write(event)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "starting"),
        ("INFO", "compared 1 of 2 images with their targets"),
        ("INFO", f"{NAME} resolves to {DESCRIPTOR}"),
        ("INFO", f"{DESCRIPTOR} fetched, 2.0 KiB in 2.0 s"),
        ("INFO", f"{DESCRIPTOR} existed, 2.0 KiB"),
        ("ERROR", f"{DESCRIPTOR} failed: gone"),
        ("INFO", f"{NAME} published"),
        ("ERROR", "no lock file"),
        ("INFO", f"{NAME} complete: 1 fetched, 0 existed"),
        ("ERROR", f"{NAME} failed with 2 errors: gone"),
    ]


def test_the_bytes_of_a_descriptor_count_between_its_discovery_and_its_end() -> None:
    counter = ProgressCounter()
    counter(ContentAdvanced(DESCRIPTOR, 1024, 1024))  # a plan reads content that no image of the run needs
    assert counter.words() == "nothing to do"
    counter(ContentFound(DESCRIPTOR))
    counter(ContentAdvanced(DESCRIPTOR, 1024, 1024))
    assert counter.words() == "0 of 1 descriptor, 1.0 KiB of 2.0 KiB"
    counter(ContentAdvanced(DESCRIPTOR, 2048, 1024))  # the last byte counts when the content is in its place
    assert counter.words() == "0 of 1 descriptor, 1.0 KiB of 2.0 KiB"
    counter(ContentFinished(DESCRIPTOR, Receipt("fetched", 2048)))
    counter(ContentAdvanced(DESCRIPTOR, 512, 512))  # the upload to a target
    assert counter.words() == "1 of 1 descriptor, 2.0 KiB of 2.0 KiB"


def test_combined_listeners_get_each_event_in_their_order() -> None:
    seen = list[tuple[int, Event]]()
    notify = combine_listeners(lambda event: seen.append((1, event)), lambda event: seen.append((2, event)))
    notify(Note("one"))
    notify(Note("two"))
    assert seen == [(1, Note("one")), (2, Note("one")), (1, Note("two")), (2, Note("two"))]


def test_a_run_after_the_block_does_not_notify_its_listener(tmp_path: Path) -> None:
    events = list[Event]()
    with FakeRegistry() as registry:
        images.load(registry, "app", IMAGE, "v1")
        with notify_also(events.append):
            pass
        assert fetch_directly(str(tmp_path), [f"{registry.host}/app:v1"]).status == "complete"
    assert events == []


@pytest.mark.parametrize("broken", [0, 1])
def test_an_image_with_one_failed_target_of_two_entries_has_failed(tmp_path: Path, broken: int) -> None:
    counter, shown = ProgressCounter(planning=0.1), LiveDisplay(Console(width=200, file=io.StringIO()), "mirroring")
    with FakeRegistry() as source, FakeRegistry() as one, FakeRegistry() as other:
        images.load(source, "app", IMAGE, "v1")
        (one, other)[broken].inject(Fault(method="PUT", path="/v2/app/manifests/v1", nth=None, action=Answer(400)))
        with notify_also(combine_listeners(counter, shown)):
            report = DirectMirrors(tmp_path).run(image(source, one, "app:v1"), image(source, other, "app:v1"), concurrency=1)
        assert sorted(row.outcome for row in report.select(TargetRow)) == ["added", "failed"]
    assert counter.lacks()
    assert counter.fraction() < 1
    assert "0 of 1 image finished, 1 failed" in counter.words()
    with (console := Console(width=200, file=io.StringIO())).capture() as captured:
        console.print(shown)
    assert "0/1 image, 1 failed" in captured.get()
