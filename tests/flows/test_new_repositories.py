"""A mirror to repositories without content sends no request whose answer the run knows."""

from collections import Counter

import pytest

from tests import images
from tests.fakes.faults import Answer, Fault, Flip, Refuse, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, count_requests, count_uploads, find_missing, repository
from tests.flows.reports import error_lines

BUILT = {f"v{number}": images.image(9100 + number, layers=2) for number in range(3)}
BLOBS = {digest for built in BUILT.values() for digest in built.blobs}
QUOTA = (("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "42;w=21600"))


@pytest.fixture
def source() -> FakeRegistry:  # type: ignore[misc]
    with FakeRegistry() as source:
        for tag, built in BUILT.items():
            images.load(source, "app", built, tag)
        yield source


def mirror(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> tuple[Counter[str], Counter[str]]:
    """Mirror all images. Return the numbers of requests to the source and to the target."""
    mirrors.take_requests(source, target)
    report = mirrors.run(repository(source, target))
    assert report.status == "complete", error_lines(report)
    assert not [lost for tag, built in BUILT.items() for lost in find_missing(target, "copy", built, tag)]
    return count_requests(mirrors.take_requests(source)), count_requests(mirrors.take_requests(target))


def test_a_new_repository_costs_one_request_for_all_tags_and_blobs(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    at_source, at_target = mirror(mirrors, source, target)
    assert at_source == {"GET tags": 1, "GET manifests": 3, "GET blobs": len(BLOBS)}
    uploads = {"POST uploads": len(BLOBS), "PUT uploads": len(BLOBS)}
    # The HEAD before a tag is set notices a tag that someone else has set meanwhile.
    assert at_target == {"GET tags": 1, **uploads, "HEAD manifests": 3, "PUT manifests": 3}


def test_the_next_run_after_an_interruption_sends_no_blob_again(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    target.inject(Fault(method="PUT", path=".*/manifests/.*", times=3, action=Refuse(403)))
    mirrors.take_requests(target)
    assert mirrors.run(repository(source, target)).status == "failed"
    assert count_uploads(mirrors.take_requests(target)) == dict.fromkeys(BLOBS, 1)

    at_source, at_target = mirror(mirrors, source, target)

    assert at_source == {"GET tags": 1, "HEAD manifests": 3}
    assert at_target == {"HEAD manifests": 6, "HEAD blobs": len(BLOBS), "PUT manifests": 3}


def test_the_next_run_after_a_failure_before_the_first_tag_sends_no_blob_again(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    """Some registries, such as the CNCF registry, know a repository only by its tags."""
    unknown = Answer(404, body=b'{"errors": [{"code": "NAME_UNKNOWN"}]}')
    target.inject(Fault(path="/v2/copy/tags/list", nth=None, action=unknown))
    configs = {next(iter(built.blobs)) for built in BUILT.values()}
    for config in configs:
        source.inject(Fault(path=f"/v2/app/blobs/{config}", action=Answer(404)))
    mirrors.take_requests(target)
    assert mirrors.run(repository(source, target)).status == "failed"
    assert count_uploads(mirrors.take_requests(target)) == dict.fromkeys(BLOBS - configs, 1)

    report = mirrors.run(repository(source, target))

    assert report.status == "complete", error_lines(report)
    requests = mirrors.take_requests(target)
    assert count_uploads(requests) == dict.fromkeys(configs, 1)
    assert count_requests(requests)["HEAD blobs"] == len(BLOBS)


def test_blobs_are_looked_up_in_a_repository_with_tags(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    images.load(target, "copy", images.image(9190), "theirs")
    images.load(target, "copy", BUILT["v0"])
    _, at_target = mirror(mirrors, source, target)
    assert at_target["HEAD blobs"] == len(BLOBS)
    assert at_target["PUT uploads"] == len(BLOBS) - len(BUILT["v0"].blobs)


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_registry_that_refuses_to_list_tags_accepts_the_push(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, status: int
) -> None:
    target.inject(Fault(path=".*/tags/list", nth=None, action=Answer(status, (), b"")))
    _, at_target = mirror(mirrors, source, target)
    assert at_target["HEAD blobs"] == len(BLOBS)


def test_tags_that_a_registry_does_not_list_are_replaced_as_listed_tags(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    for tag in BUILT:
        images.load(target, "copy", images.image(9191), tag)
    target.inject(Fault(path=".*/tags/list", nth=None, action=Answer(404)))
    _, at_target = mirror(mirrors, source, target)
    assert (at_target["HEAD manifests"], at_target["PUT manifests"]) == (6, 3)


@pytest.mark.parametrize("at", [0, 20])
def test_a_manifest_that_was_corrupted_on_the_way_is_requested_again(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, at: int
) -> None:
    source.inject(Fault(path=".*/manifests/v1", action=Flip(at)))
    report = mirrors.run(repository(source, target), retries=1)
    assert report.status == "complete", error_lines(report)
    assert not find_missing(target, "copy", BUILT["v1"], "v1")
    requests = count_requests(mirrors.take_requests(source))
    assert (requests["GET manifests"], requests["HEAD manifests"]) == (4, 1)


def test_a_registry_with_a_quota_for_pulls_is_asked_by_head(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    source.inject(Fault(path=".*/(tags|manifests)/.*", nth=None, action=WithHeaders(QUOTA)))
    at_source, _ = mirror(mirrors, source, target)
    assert (at_source["HEAD manifests"], at_source["GET manifests"]) == (3, 3)
