"""The walk over images, without Prefect."""

import logging

from prefect_dist.flows.walk import Walk
from prefect_dist.flows.wanted import Image
from prefect_dist.mirror.progress import LogListener
from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.transfer.cancellation import Stopping
from tests.flows.walks import Bringing, Job, Nothing, fetched

ROOT = Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest=Digest.of(b"root"), size=4)


def image(number: int) -> Image:
    return Image(Reference.parse(f"registry.example/app:v{number}"), root=ROOT)


def walk(course: Bringing, stopping: Stopping | None = None) -> Walk:
    listener = LogListener(logging.getLogger("test"))
    return Walk(Nothing(), course, listener=listener, stopping=stopping or Stopping(), retries=0, window=2)


def test_an_image_that_is_added_at_the_end_of_another_one_shares_its_content() -> None:
    waiting, ended = [image(number) for number in range(2000)], list[Image]()

    def begin_next(one: Image) -> None:
        ended.append(one)
        if waiting:
            walking.add([waiting.pop()])

    walking = walk(Bringing(begin_next, fetched))
    walking.run([waiting.pop()])
    reports = walking.reports(ended)
    assert len(reports) == 2000
    assert [(report.fetched, report.existed, report.failures) for report in reports] == [(1, 0, ()), *[(0, 1, ())] * 1999]
    assert walking.tasks == 1


def test_an_image_that_is_added_at_the_failure_of_another_one_fails_once() -> None:
    waiting, ended = [image(number) for number in range(3)], list[Image]()

    def begin_next(one: Image) -> None:
        ended.append(one)
        if waiting:
            walking.add([waiting.pop()])

    def fail(job: Job, _: Descriptor) -> None:
        job.end(Unavailable("nothing is there"))

    walking = walk(Bringing(begin_next, fail))
    walking.run([waiting.pop()])
    assert [len(report.failures) for report in walking.reports(ended)] == [1, 1, 1]
    assert [one.open for one in ended] == [0, 0, 0]


def test_a_stop_ends_images_that_are_added_after_it() -> None:
    stopping, waiting, ended = Stopping(), [image(number) for number in range(3)], list[Image]()

    def begin_next(one: Image) -> None:
        stopping.set("terminated")
        one.root = Descriptor(media_type=ROOT.media_type, digest=Digest.of(str(len(waiting)).encode()), size=1)
        ended.append(one)
        if waiting:
            waiting[-1].root = one.root
            walking.add([waiting.pop()])

    walking = walk(Bringing(begin_next, fetched), stopping)
    walking.run([waiting.pop()])
    assert [bool(report.failures) for report in walking.reports(ended)] == [False, True, True]
    assert walking.tasks == 1
