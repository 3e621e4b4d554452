"""A push on a pool of threads: the counts that it reports, and the requests that the target receives."""

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
from tests.transfer.content import asked, at, put

ONE, OTHER = images.image(900, layers=2), images.image(901, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
SIGNATURE = images.artifact(902, subject=INDEX)
BLOBS = len(ONE.blobs) + len(OTHER.blobs)
SIZE = sum(map(len, [*ONE.blobs.values(), *OTHER.blobs.values(), *(one.raw for one in INDEX.manifests)]))


def push(session: Session, target: Reference, *, retries: int = 0, referrers: bool = False) -> Delivered:
    """Push the index, which has a signature, one unit of work at a time."""
    session.store.names.put("app", put(session, INDEX), source="elsewhere.example/app")
    along = Referrer(put(session, SIGNATURE))
    image = replace(session.store.names.get("app"), referrers=(along,))
    with ThreadPool(session, window=1, retries=retries) as pool:
        return Push(pool, image, target, ignore_event, referrers=referrers).run()


def counts(result: Delivered) -> dict[str, int]:
    """Return the number of descriptors by result."""
    return dict(Counter(receipt.status for _, receipt in result.receipts))


def test_a_manifest_that_is_refused_counts_as_failed_and_those_after_it_as_waiting(
    session: Session, target: FakeRegistry
) -> None:
    target.inject(Fault(method="PUT", path=f".*/manifests/{OTHER.root.digest}", action=Answer(403, (), b"")))
    result = push(session, at(target, "app:v1"))
    assert (counts(result), len(result.failures), result.waiting) == ({"pushed": BLOBS + 1}, 1, 1)
    assert target.manifest("app", ONE.root.digest)
    assert target.manifest("app", "v1") is None


def test_what_an_earlier_attempt_of_the_publication_pushed_is_counted_as_pushed(session: Session, target: FakeRegistry) -> None:
    target.inject(Fault(method="HEAD", path=".*/manifests/v1", nth=2, action=Answer(503, (), b"")))
    result = push(session, at(target, "app:v1"), retries=1)
    assert (result.failures, counts(result)) == ((), {"pushed": BLOBS + 3})
    assert sum(receipt.transferred for _, receipt in result.receipts) == SIZE
    assert len([one for one in asked(target) if one == f"PUT /v2/app/manifests/{ONE.root.digest}"]) == 1


@pytest.mark.parametrize("path", [".*/blobs/uploads/", ".*/manifests/v1"])
def test_a_stop_is_one_failure_and_the_rest_is_waiting(session: Session, target: FakeRegistry, path: str) -> None:
    method = "POST" if "blobs" in path else "PUT"
    target.inject(Fault(method=method, path=path, action=Call(lambda: session.cancel.set("Ctrl-C"))))
    result = push(session, at(target, "app:v1"))
    (failure,) = result.failures
    assert (failure.descriptor, failure.message) == (None, "Ctrl-C; complete content is kept, run again to resume")
    assert len(result.receipts) + result.waiting == len(INDEX.descriptors)
    assert result.waiting


def test_referrers_of_an_image_that_is_at_the_target_are_pushed_and_nothing_else(
    session: Session, target: FakeRegistry
) -> None:
    push(session, at(target, "app:v1"))
    before = len(target.requests)
    result = push(session, at(target, "app:v1"), referrers=True)
    expected = {"existed": len(INDEX.descriptors), "pushed": len(SIGNATURE.descriptors)}
    assert (result.failures, counts(result)) == ((), expected)
    assert not [one for one in asked(target)[before:] if any(digest in one for digest in INDEX.descriptors)]
    manifests = [one for one in asked(target)[before:] if "/manifests/" in one]
    assert manifests == [
        "HEAD /v2/app/manifests/v1",
        f"HEAD /v2/app/manifests/{SIGNATURE.root.digest}",
        f"PUT /v2/app/manifests/{SIGNATURE.root.digest}",
        "HEAD /v2/app/manifests/v1",
    ]


def test_blobs_are_sent_although_one_is_refused_and_no_manifest_is(session: Session, target: FakeRegistry) -> None:
    target.inject(Fault(method="PUT", path=".*/blobs/uploads/.*", nth=1, action=Answer(403, (), b"")))
    result = push(session, at(target, "app:v1"))
    assert [one.descriptor is not None for one in result.failures] == [True]
    assert (counts(result), result.waiting) == ({"pushed": BLOBS - 1}, 3)
    assert not [one for one in asked(target) if one.startswith("PUT") and "/manifests/" in one]
