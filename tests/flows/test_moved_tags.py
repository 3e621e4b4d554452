"""Target tags that another client moves during a run: the run does not move the tags back."""

from tests import images
from tests.fakes.faults import Call, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, find_missing, image, results
from tests.flows.reports import error_lines

OLD, NEW, NEWEST = (images.image(seed, layers=1) for seed in (8200, 8201, 8202))


def test_a_run_with_an_older_plan_does_not_move_a_tag_backwards(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", OLD, "v1")
    entry = image(source, target, "app:v1", backup="old-{{.Ref.Tag}}")
    mirrors.run(entry)
    before = mirrors.read_lock()
    images.load(source, "app", NEW, "v1")
    target.inject(Fault(method="POST", path=".*/uploads/", action=Call(lambda: images.load(target, "app", NEWEST, "v1"))))

    report = mirrors.run(entry)

    assert not find_missing(target, "app", NEWEST, "v1")
    assert target.manifest("app", "old-v1") is None
    assert (report.status, results(report)) == ("failed", {"app:v1": "failed"})
    (error,) = error_lines(report)
    moved = f"target tag moved from {OLD.root.digest} to {NEWEST.root.digest} since the plan was made; run again"
    assert error == f"{source.host}/app:v1 to {target.host}/app:v1: {moved}"
    assert mirrors.read_lock() == before

    report = mirrors.run(entry)

    assert results(report) == {"app:v1": "changed"}
    assert not find_missing(target, "app", NEW, "v1")
    assert not find_missing(target, "app", NEWEST, "old-v1")


def test_a_repair_does_not_move_a_tag_back_that_moved_after_the_check(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", OLD, "v1")
    mirrors.run(image(source, target, "app:v1"))
    target.lose("app", next(iter(OLD.blobs)))
    target.inject(Fault(method="POST", path=".*/uploads/", action=Call(lambda: images.load(target, "app", NEWEST, "v1"))))

    report = mirrors.check(repair=True)

    assert not find_missing(target, "app", NEWEST, "v1")
    assert report.status == "failed"
    (error,) = error_lines(report)
    assert f"target tag moved from {OLD.root.digest} to {NEWEST.root.digest} since the plan was made; run again" in error
