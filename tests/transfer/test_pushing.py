"""Pushes on the thread pool: the counts of the report, and the requests that the target receives."""

from collections import Counter
from dataclasses import replace

import pytest

from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.transfer.events import ignore_event
from prefect_dist.transfer.pushing import Delivered, Push
from prefect_dist.transfer.session import Session
from prefect_dist.transfer.threads import ThreadPool
from tests import images
from tests.fakes.faults import Answer, Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.transfer.content import list_requests, put_image, reference_at

ONE, OTHER = images.image(900, layers=2), images.image(901, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
SIGNATURE = images.artifact(902, subject=INDEX)
BLOBS = len(ONE.blobs) + len(OTHER.blobs)
SIZE = sum(map(len, [*ONE.blobs.values(), *OTHER.blobs.values(), *(one.raw for one in INDEX.manifests)]))


def push(session: Session, target: Reference, *, retries: int = 0, referrers: bool = False) -> Delivered:
    """Push the index and its signature, one unit of work at a time."""
    session.store.names.put("app", put_image(session, INDEX), source="elsewhere.example/app")
    referrer = Referrer(put_image(session, SIGNATURE))
    image = replace(session.store.names.get("app"), referrers=(referrer,))
    with ThreadPool(session, window=1, retries=retries) as pool:
        return Push(pool, image, target, ignore_event, referrers=referrers).run()


def counts(result: Delivered) -> dict[str, int]:
    """Return the number of descriptors by result."""
    return dict(Counter(receipt.status for _, receipt in result.receipts))


def test_a_refused_manifest_is_failed_and_the_manifests_after_it_are_waiting(session: Session, target: FakeRegistry) -> None:
    target.inject(Fault(method="PUT", path=f".*/manifests/{OTHER.root.digest}", action=Answer(403, (), b"")))
    result = push(session, reference_at(target, "app:v1"))
    assert (counts(result), len(result.failures), result.waiting) == ({"pushed": BLOBS + 1}, 1, 1)
    assert target.manifest("app", ONE.root.digest)
    assert target.manifest("app", "v1") is None


def test_content_that_an_earlier_attempt_pushed_counts_as_pushed(session: Session, target: FakeRegistry) -> None:
    target.inject(Fault(method="HEAD", path=".*/manifests/v1", nth=2, action=Answer(503, (), b"")))
    result = push(session, reference_at(target, "app:v1"), retries=1)
    assert (result.failures, counts(result)) == ((), {"pushed": BLOBS + 3})
    assert sum(receipt.transferred for _, receipt in result.receipts) == SIZE
    assert len([one for one in list_requests(target) if one == f"PUT /v2/app/manifests/{ONE.root.digest}"]) == 1


@pytest.mark.parametrize("path", [".*/blobs/uploads/", ".*/manifests/v1"])
def test_a_stop_is_one_failure_and_the_remaining_content_is_waiting(session: Session, target: FakeRegistry, path: str) -> None:
    method = "POST" if "blobs" in path else "PUT"
    target.inject(Fault(method=method, path=path, action=Call(lambda: session.cancel.set("Ctrl-C"))))
    result = push(session, reference_at(target, "app:v1"))
    (failure,) = result.failures
    assert (failure.descriptor, failure.message) == (None, "Ctrl-C; complete content is kept, run again to resume")
    assert len(result.receipts) + result.waiting == len(INDEX.descriptors)
    assert result.waiting


def test_only_referrers_are_pushed_if_the_target_has_the_image(session: Session, target: FakeRegistry) -> None:
    push(session, reference_at(target, "app:v1"))
    before = len(target.requests)
    result = push(session, reference_at(target, "app:v1"), referrers=True)
    expected = {"existed": len(INDEX.descriptors), "pushed": len(SIGNATURE.descriptors)}
    assert (result.failures, counts(result)) == ((), expected)
    assert not [one for one in list_requests(target)[before:] if any(digest in one for digest in INDEX.descriptors)]
    manifests = [one for one in list_requests(target)[before:] if "/manifests/" in one]
    assert manifests == [
        "HEAD /v2/app/manifests/v1",
        f"HEAD /v2/app/manifests/{SIGNATURE.root.digest}",
        f"PUT /v2/app/manifests/{SIGNATURE.root.digest}",
        "HEAD /v2/app/manifests/v1",
    ]


def test_a_refused_blob_stops_manifests_but_not_other_blobs(session: Session, target: FakeRegistry) -> None:
    target.inject(Fault(method="PUT", path=".*/blobs/uploads/.*", nth=1, action=Answer(403, (), b"")))
    result = push(session, reference_at(target, "app:v1"))
    assert [one.descriptor is not None for one in result.failures] == [True]
    assert (counts(result), result.waiting) == ({"pushed": BLOBS - 1}, 3)
    assert not [one for one in list_requests(target) if one.startswith("PUT") and "/manifests/" in one]
