"""The walk over images. The tests end its units."""

from collections.abc import Callable

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.transfer.cancellation import CancelToken
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import ignore_event
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.pool import Failed, Ok
from prefect_dist.transfer.walk import Walk
from prefect_dist.transfer.walk_state import ImageState
from tests.transfer.pools import HeldPool
from tests.transfer.walks import EmptyStore, FetchingPolicy, end_fetched

ROOT = Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest=Digest.of(b"root"), size=4)


def image(number: int) -> ImageState:
    return ImageState(Reference.parse(f"registry.example/app:v{number}"), root=ROOT)


def walk(
    policy: FetchingPolicy, run: Callable[[HeldPool, object], None], cancel: CancelToken | None = None
) -> tuple[Walk, HeldPool]:
    pool = HeldPool(run, cancel=cancel)
    return Walk(EmptyStore(), policy, pool, ignore_event), pool


def test_an_image_that_is_added_when_another_image_ends_shares_its_content() -> None:
    waiting, ended = [image(number) for number in range(2000)], list[ImageState]()

    def begin_next(one: ImageState) -> None:
        ended.append(one)
        if waiting:
            walking.add([waiting.pop()])

    walking, pool = walk(FetchingPolicy(begin_next), end_fetched)
    walking.run([waiting.pop()])
    reports = walking.reports(ended)
    assert len(reports) == 2000
    assert [(report.fetched, report.existed, report.failures) for report in reports] == [(1, 0, ()), *[(0, 1, ())] * 1999]
    assert pool.runs == 1


def test_an_image_that_is_added_when_another_image_fails_has_one_failure() -> None:
    waiting, ended = [image(number) for number in range(3)], list[ImageState]()

    def begin_next(one: ImageState) -> None:
        ended.append(one)
        if waiting:
            walking.add([waiting.pop()])

    def fail(pool: HeldPool, item: object) -> None:
        pool.finish(item, Failed(Unavailable("no such content")))

    walking, _ = walk(FetchingPolicy(begin_next), fail)
    walking.run([waiting.pop()])
    assert [len(report.failures) for report in walking.reports(ended)] == [1, 1, 1]
    assert [one.open for one in ended] == [0, 0, 0]


def test_a_stop_ends_images_that_are_added_after_it() -> None:
    cancel, waiting, ended = CancelToken(), [image(number) for number in range(3)], list[ImageState]()

    def begin_next(one: ImageState) -> None:
        cancel.set("terminated")
        one.root = Descriptor(media_type=ROOT.media_type, digest=Digest.of(str(len(waiting)).encode()), size=1)
        ended.append(one)
        if waiting:
            waiting[-1].root = one.root
            walking.add([waiting.pop()])

    walking, pool = walk(FetchingPolicy(begin_next), end_fetched, cancel)
    walking.run([waiting.pop()])
    assert [bool(report.failures) for report in walking.reports(ended)] == [False, True, True]
    assert pool.runs == 1


def test_a_failed_image_is_unchanged_when_another_repository_has_its_content() -> None:
    root = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=Digest.of(b"manifest"), size=8)
    layers = tuple(Descriptor(media_type=ROOT.media_type, digest=Digest.of(name), size=4) for name in (b"one", b"two"))
    first, second = (ImageState(Reference.parse(f"{host}.example/app:v1"), root=root) for host in ("one", "two"))
    ended = list[ImageState]()

    def fail_first_then_serve(pool: HeldPool, item: object) -> None:
        if pool.started == [root]:
            pool.finish(item, Failed(Unavailable("no such content")))
        else:
            pool.finish(item, Ok(Fetched(Receipt("fetched"), layers if item == root else ())))

    def add_second(image: ImageState) -> None:
        ended.append(image)
        if image is first:
            walking.add([second])

    walking, _ = walk(FetchingPolicy(add_second), fail_first_then_serve)
    walking.run([first])
    assert ended == [first, second]
    assert [(image.open, image.fetched, len(image.failures)) for image in ended] == [(0, 0, 1), (0, 3, 0)]


def test_the_report_of_an_image_counts_fetched_existing_and_failed_descriptors() -> None:
    root = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=Digest.of(b"manifest"), size=8)
    fetched, existing, missing = (
        Descriptor(media_type=ROOT.media_type, digest=Digest.of(name), size=4) for name in (b"one", b"two", b"three")
    )
    outcomes: dict[object, Ok[Fetched] | Failed] = {
        root: Ok(Fetched(Receipt("fetched"), (fetched, existing, missing))),
        fetched: Ok(Fetched(Receipt("fetched"), ())),
        existing: Ok(Fetched(Receipt("existed"), ())),
        missing: Failed(Unavailable("no such content")),
    }
    image, ended = ImageState(Reference.parse("registry.example/app:v1"), root=root), list[ImageState]()

    walking, _ = walk(FetchingPolicy(ended.append), lambda pool, item: pool.finish(item, outcomes[item]))
    walking.run([image])

    (report,) = walking.reports(ended)
    assert (report.fetched, report.existed, report.failed, report.descriptors) == (2, 1, 1, 4)
