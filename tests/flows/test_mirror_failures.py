"""Failures of images or registries of a mirror: other images are mirrored, and the next run resumes."""

import json
from collections import Counter

import pytest

from prefect_dist.mirror.progress import notify_also
from prefect_dist.mirror.render import next_step, summary_line, table
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.transfer.cancellation import CancelToken, describe_stop, use_token
from prefect_dist.transfer.events import ContentAdvanced, ContentFinished, Event
from tests import images
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import Answer, Call, Fault, Flip, Refuse
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, bytes_of, count_reads, count_uploads, find_missing, image, repository, results
from tests.flows.reports import document, error_lines, outcomes

BUILT = {tag: images.image(1000 + number, layers=2) for number, tag in enumerate(("v1", "v2", "v3"))}


@pytest.fixture
def source() -> FakeRegistry:  # type: ignore[misc]
    with FakeRegistry() as source:
        for tag, built in BUILT.items():
            images.load(source, "app", built, tag)
        yield source


@pytest.mark.parametrize(
    "auth", [Basic("me", "right"), Bearer(user="me", password="right", refuse_anonymous=True)], ids=["basic", "token"]
)
def test_the_error_for_a_rejected_password_names_its_place_in_the_configuration(
    mirrors: Mirrors, source: FakeRegistry, auth: Basic | Bearer
) -> None:
    with FakeRegistry(auth=auth) as guarded:
        known = {guarded.host: {"user": "me", "pass": "topsecret"}}
        report = mirrors.run(*(image(source, guarded, f"app:{tag}") for tag in BUILT), registries=known)
        start = (
            f"{guarded.host}: the password of user 'me' (from {mirrors.config}:1: registries.{guarded.host}) was rejected; "
            "correct user and pass there ("
        )
        causes = [error.partition(": ")[2] for error in error_lines(report)]
        assert [error[: len(start)] for error in causes] == [start] * len(BUILT)
        assert len(set(causes)) == 1
        assert "topsecret" not in "".join(error_lines(report))


@pytest.mark.usefixtures("prefect")
def test_the_error_for_missing_credentials_lists_the_ways_to_give_them(mirrors: Mirrors, source: FakeRegistry) -> None:
    with FakeRegistry(auth=Basic("me", "right")) as guarded:
        (error,) = error_lines(mirrors.run(image(source, guarded, "app:v1")))
    assert (
        f"; set user and pass, or block, in registries of {mirrors.config}, give the run a credentials block (--credentials), "
        f"or log in with 'docker login {guarded.host}' or 'podman login {guarded.host}' (" in error
    )


def test_the_report_has_each_failure_and_all_other_images_are_mirrored(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    with FakeRegistry() as unreachable:
        pass
    other.inject(Fault(method="POST", path="/v2/shut/.*", nth=None, action=Answer(403, (), b"")))
    sync = [
        repository(source, target, unreachable),
        image(source, target, "app:none"),
        image(source, other, "app:v1"),
        {**image(source, other, "app:v1"), "target": f"{other.host}/shut:v1"},
        {**repository(unreachable, target), "target": f"{target.host}/late"},
        image(unreachable, target, "lost:v1"),
    ]
    sync[4].pop("targets")

    report = mirrors.run(*sync)

    by_target = outcomes(report)
    assert by_target == {
        **{f"{target.host}/copy:{tag}": "added" for tag in BUILT},
        **{f"{unreachable.host}/copy:{tag}": "failed" for tag in BUILT},
        f"{target.host}/app:none": "failed",
        f"{other.host}/app:v1": "added",
        f"{other.host}/shut:v1": "failed",
        f"{target.host}/lost:v1": "failed",
    }
    assert not [digest for tag, built in BUILT.items() for digest in find_missing(target, "copy", built, tag)]
    assert not find_missing(other, "app", BUILT["v1"], "v1")
    errors = sorted(error_lines(report))
    expected = sorted(
        [
            *(f"{source.host}/app:{tag} to {unreachable.host}/copy:{tag}: " for tag in BUILT),
            f"{source.host}/app:none to {target.host}/app:none: ",
            f"{source.host}/app:v1 to {other.host}/shut:v1: ",
            f"{unreachable.host}/lost:v1 to {target.host}/lost:v1: ",
            f"{mirrors.directory}/mirror.yaml:1: sync[4]: ",
        ]
    )
    assert [error[: len(start)] for error, start in zip(errors, expected, strict=True)] == expected
    assert summary_line(report).startswith("mirror failed: 4 added, 0 changed, 0 unchanged, 6 failed, 1 unresolved; ")
    assert len(document(report)["errors"]) == 7
    locked = mirrors.read_lock()
    assert {name for name, one in locked.items() if one["mirrored"]} == {
        name for name, outcome in by_target.items() if outcome == "added"
    }


@pytest.mark.parametrize("status", [413, 500, 507])
def test_a_target_without_space_does_not_affect_other_targets(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry, status: int
) -> None:
    for method in ("PATCH", "PUT"):
        other.inject(Fault(method=method, path=".*/blobs/uploads/.*", nth=None, action=Refuse(status)))
    entry = repository(source, target, other)

    report = mirrors.run(entry)

    assert report.status == "failed"
    by_target = outcomes(report)
    assert Counter((name.partition("/")[0], result) for name, result in by_target.items()) == {
        (target.host, "added"): 3,
        (other.host, "failed"): 3,
    }
    assert not [digest for tag, built in BUILT.items() for digest in find_missing(target, "copy", built, tag)]
    assert all(f"to {other.host}/copy:" in error and str(status) in error for error in error_lines(report))
    assert len(error_lines(report)) == 3
    assert other.find_requests("PUT", ".*/manifests/.*") == []


def test_an_unavailable_registry_is_not_retried_for_each_blob(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    other.inject(Fault(method="POST", nth=None, action=Answer(503, (), b"")))
    report = mirrors.run(repository(source, target, other), retries=1, concurrency=1)
    assert Counter(results(report).values()) == {"failed": 3}
    assert not [digest for tag, built in BUILT.items() for digest in find_missing(target, "copy", built, tag)]
    blobs = sum(len(built.blobs) for built in BUILT.values())
    attempts = 2
    assert len(other.find_requests("POST", ".*")) == attempts + (blobs - 1) + attempts * len(
        BUILT
    )  # each publication also tries an upload


def test_the_next_run_sends_only_the_content_that_failed(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    layer = list(BUILT["v2"].blobs)[1]
    source.inject(Fault(path=f".*/blobs/{layer}", action=Flip(7)))
    other.inject(Fault(method="PUT", path=".*/manifests/v3", action=Answer(403, (), b"")))
    entry = repository(source, target, other)

    report = mirrors.run(entry)

    by_target = outcomes(report)
    failed = {f"{target.host}/copy:v2", f"{other.host}/copy:v2", f"{other.host}/copy:v3"}
    assert {name for name, result in by_target.items() if result == "failed"} == failed
    assert len(error_lines(report)) == 3
    assert all(layer in error for error in error_lines(report) if "/app:v2 to" in error)
    for place in (target, other):
        assert place.manifest("copy", "v2") is None
        assert place.blob("copy", layer) is None
    mirrors.take_requests(source, target, other)

    again = mirrors.run(entry)

    assert again.status == "complete", error_lines(again)
    assert count_reads(mirrors.take_requests(source)) == {layer: 1}
    assert count_uploads(mirrors.take_requests(target)) == count_uploads(mirrors.take_requests(other)) == {layer: 1}
    for place in (target, other):
        assert not [digest for tag, built in BUILT.items() for digest in find_missing(place, "copy", built, tag)]
    assert all(one["mirrored"] for one in mirrors.read_lock().values())


def test_transferred_bytes_are_counted_once_despite_retries(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, other: FakeRegistry
) -> None:
    other.inject(Fault(method="POST", path=".*/uploads/", nth=1, times=3, action=Answer(503, (), b"")))
    report = mirrors.run(repository(source, target, other), retries=2)
    assert report.status == "complete", error_lines(report)
    assert report.counts["fetched_bytes"] == bytes_of(*BUILT.values())
    assert report.counts["sent_bytes"] == 2 * bytes_of(*BUILT.values())


def test_a_manifest_that_is_refused_for_an_unreadable_blob_is_pushed_again(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    errors = [{"code": "DIGEST_INVALID", "message": ""}, {"code": "MANIFEST_BLOB_UNKNOWN", "message": ""}]
    answer = Answer(400, (("Content-Type", "application/json"),), json.dumps({"errors": errors}).encode())
    target.inject(Fault(method="PUT", path=".*/manifests/v2", action=answer))
    report = mirrors.run(repository(source, target), retries=1)
    assert report.status == "complete", error_lines(report)
    assert len(target.find_requests("PUT", ".*/manifests/v2")) == 2


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 7, "images": {}}', b'{"version": 1, "images": {"a/b:c": 5}}'])
def test_a_damaged_lock_file_ends_the_run_before_any_request(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, content: bytes
) -> None:
    mirrors.lock.write_bytes(content)
    with pytest.raises(
        InvalidInput, match=r"lock file .*mirror.lock.json: damaged .*; restore the file, or remove it to start a new one"
    ):
        mirrors.run(repository(source, target))
    assert source.requests + target.requests == []
    assert mirrors.lock.read_bytes() == content


def test_a_run_fails_if_the_lock_file_cannot_be_written(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    lock = mirrors.directory / "locks" / "lock.json"
    source.inject(Fault(method="GET", path=".*/tags/list", action=Call(lambda: lock.parent.write_text("this is a file"))))

    report = mirrors.run(repository(source, target), lock=str(lock))

    assert (report.status, report.stopped) == ("failed", None)
    assert set(results(report).values()) == {"failed"}
    assert all(str(lock) in error for error in error_lines(report))
    assert not [error for error in error_lines(report) if "run again to resume" in error]
    assert [error.object for error in report.errors] == [None, "results in the lock file"]
    assert next_step(report).startswith("Fix the failures below")
    assert not [one for one in target.requests if one.method not in ("GET", "HEAD")]

    lock.parent.unlink()
    assert mirrors.run(repository(source, target), lock=str(lock)).status == "complete"


def test_a_run_that_is_stopped_during_planning_reports_and_changes_nothing(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    cancel = CancelToken()

    def stop_at_first_bytes(event: Event) -> None:
        if isinstance(event, ContentAdvanced):
            cancel.request("asked to end")

    with use_token(cancel), notify_also(stop_at_first_bytes):
        report = mirrors.run(repository(source, target), concurrency=1)

    assert (report.status, set(results(report).values())) == ("stopped", {"failed"})
    assert error_lines(report) == ["3 targets not finished: asked to end; complete content is kept, run again to resume"]
    assert not [one for one in target.requests if one.method not in ("GET", "HEAD")]
    assert mirrors.run(repository(source, target)).status == "complete"


def test_a_stopped_run_reports_and_the_next_run_resumes(mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry) -> None:
    cancel = CancelToken()
    _, layer, _ = BUILT["v2"].blobs

    def stop_at_layer(event: Event) -> None:
        if isinstance(event, ContentFinished) and str(event.descriptor.digest) == layer:
            cancel.request("asked to end")

    entry = repository(source, target)
    with use_token(cancel), notify_also(stop_at_layer):
        report = mirrors.run(entry)

    assert report.status == "stopped"
    assert "failed" in results(report).values()
    unreached = list(results(report).values()).count("failed")
    assert error_lines(report) == [f"{unreached} target{'s' * (unreached > 1)} not finished: {describe_stop('asked to end')}"]
    assert "failed" not in {row["outcome"] for row in table(report).list_cells()}
    before = count_reads(mirrors.take_requests(source))
    sent = count_uploads(mirrors.take_requests(target))

    again = mirrors.run(entry)

    assert again.status == "complete", error_lines(again)
    assert not [digest for tag, built in BUILT.items() for digest in find_missing(target, "copy", built, tag)]
    content = {digest for one in BUILT.values() for digest in one.descriptors}
    roots = {one.root.digest for one in BUILT.values()}
    assert set(before + count_reads(mirrors.take_requests(source))) == content - roots | set(BUILT)
    assert layer in before
    assert layer not in count_reads(source.requests) - before
    assert max((sent + count_uploads(mirrors.take_requests(target))).values()) == 1
