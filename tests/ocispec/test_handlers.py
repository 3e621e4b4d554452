"""Handlers: how they stack, what steers a walk, and how a parallel walk is bounded and ended."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Platform, mediatypes
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unsupported
from prefect_dist.ocispec.handlers import (
    Handler,
    SkipChildren,
    StopChain,
    chain,
    children_handler,
    dispatch,
    filter_platforms,
    limit_manifests,
    visit,
    walk,
)
from tests import images
from tests.ocispec.samples import described

WAIT_S = 30  # until a test fails that would hang
ROOT, A, B, C, A1, A2, B1 = (described(name=name) for name in ("root", "a", "b", "c", "a1", "a2", "b1"))
TREE = {ROOT: [A, B, C], A: [A1, A2], B: [B1]}

INDEX = described(mediatypes.OCI_INDEX)
AMD64, ARM64, ARM_V6, ARM_V7 = (
    described(mediatypes.OCI_MANIFEST, name, platform=name)
    for name in ("linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7")
)
ATTESTATION = described(mediatypes.OCI_MANIFEST, "attestation", platform="unknown/unknown")
UNSAID = described(mediatypes.OCI_INDEX, "nested")
LISTED = [ATTESTATION, AMD64, ARM64, ARM_V6, ARM_V7]


class Recorder:
    """A handler that answers from a tree and remembers what it saw; `raising` says where it raises what."""

    def __init__(self, tree: dict[Descriptor, list[Descriptor]], raising: dict[Descriptor, Exception] | None = None) -> None:
        self.seen: list[Descriptor] = []
        self._tree = tree
        self._raising = raising or {}

    def __call__(self, descriptor: Descriptor) -> Sequence[Descriptor]:
        self.seen.append(descriptor)
        if descriptor in self._raising:
            raise self._raising[descriptor]
        return self._tree.get(descriptor, [])


def answering(*found: Descriptor) -> Handler:
    return lambda _: found


def raising(error: Exception) -> Handler:
    def handle(_: Descriptor) -> Sequence[Descriptor]:
        raise error

    return handle


def wishes(*texts: str) -> list[Platform]:
    return [Platform.parse(text) for text in texts]


def in_sequence(handler: Handler, *roots: Descriptor) -> None:
    walk(handler, *roots)


def in_parallel(handler: Handler, *roots: Descriptor) -> None:
    dispatch(handler, *roots, workers=1)


WALKS = pytest.mark.parametrize("go", [in_sequence, in_parallel])
Walk = Callable[..., None]


def test_a_chain_answers_with_everything_in_order() -> None:
    assert list(chain(answering(A, B), answering(), answering(A, C))(ROOT)) == [A, B, A, C]


def test_an_empty_chain_finds_nothing() -> None:
    assert list(chain()(ROOT)) == []


def test_stop_chain_keeps_what_earlier_handlers_answered() -> None:
    later = Recorder({})
    assert list(chain(answering(A), raising(StopChain()), later)(ROOT)) == [A]
    assert later.seen == []


def test_stop_chain_ends_the_inner_chain_only() -> None:
    inner = chain(answering(A), raising(StopChain()), answering(B))
    assert list(chain(inner, answering(C))(ROOT)) == [A, C]


def test_stop_chain_concerns_one_descriptor() -> None:
    later = Recorder({})
    walk(chain(Recorder(TREE), Recorder({}, {A: StopChain()}), later), ROOT)
    assert later.seen == [ROOT, A1, A2, B, B1, C]


def test_an_error_in_a_chain_ends_it() -> None:
    later = Recorder({})
    with pytest.raises(Corrupt, match="bad"):
        chain(answering(A), raising(Corrupt("bad")), later)(ROOT)
    assert later.seen == []


def test_skip_children_in_a_chain_drops_what_earlier_handlers_answered() -> None:
    assert list(visit(chain(answering(A), raising(SkipChildren())), ROOT)) == []


def test_a_walk_is_depth_first_with_siblings_in_order() -> None:
    handler = Recorder(TREE)
    walk(handler, ROOT)
    assert handler.seen == [ROOT, A, A1, A2, B, B1, C]


def test_a_walk_takes_its_roots_in_order() -> None:
    handler = Recorder(TREE)
    walk(handler, B, A)
    assert handler.seen == [B, B1, A, A1, A2]


@WALKS
def test_the_siblings_of_a_skipped_descriptor_are_visited(go: Walk) -> None:
    handler = Recorder(TREE, {A: SkipChildren()})
    go(handler, ROOT)
    assert handler.seen == ([ROOT, A, B, B1, C] if go is in_sequence else [ROOT, A, B, C, B1])


@WALKS
def test_the_first_error_ends_a_walk(go: Walk) -> None:
    handler = Recorder(TREE, {B: Corrupt("first"), C: Corrupt("second")})
    with pytest.raises(Corrupt, match="first"):
        go(handler, ROOT)
    assert handler.seen == ([ROOT, A, A1, A2, B] if go is in_sequence else [ROOT, A, B])


@WALKS
def test_a_walk_without_roots_visits_nothing(go: Walk) -> None:
    go(raising(Corrupt("called")))


def test_a_deep_walk_does_not_recurse() -> None:
    deep = [described(name=str(level)) for level in range(5000)]
    handler = Recorder({parent: [child] for parent, child in pairwise(deep)})
    walk(handler, deep[0])
    assert handler.seen == deep


def test_dispatch_visits_equal_descriptors_once() -> None:
    handler = Recorder({ROOT: [A, A, B], A: [C], B: [C, ROOT]})
    dispatch(handler, ROOT, ROOT, workers=3)
    assert sorted(handler.seen, key=str) == sorted([ROOT, A, B, C], key=str)


def test_dispatch_works_on_as_many_at_once_as_it_may_and_no_more() -> None:
    workers = 3
    together = threading.Barrier(workers)
    lock = threading.Lock()
    under_way = most = count = 0

    def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        nonlocal under_way, most, count
        if descriptor == ROOT:
            return [described(name=str(number)) for number in range(4 * workers)]
        with lock:
            under_way, count = under_way + 1, count + 1
            most = max(most, under_way)
        together.wait(WAIT_S)  # passed only by exactly so many at once
        with lock:
            under_way -= 1
        return ()

    dispatch(handle, ROOT, workers=workers)
    assert (most, count) == (workers, 4 * workers)


def test_dispatch_waits_for_those_under_way_and_starts_none_after_an_error() -> None:
    both = threading.Barrier(2)
    failing = threading.Event()
    seen: list[Descriptor] = []
    left: list[Descriptor] = []

    def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        seen.append(descriptor)
        both.wait(WAIT_S)
        if descriptor == A:
            failing.set()
            raise Corrupt("first")
        failing.wait(WAIT_S)
        left.append(descriptor)
        raise Corrupt("also")

    with pytest.raises(Corrupt):
        dispatch(handle, A, B, C, workers=2)
    assert sorted(seen, key=str) == sorted([A, B], key=str)
    assert left == [B]


def test_children_come_from_what_is_read() -> None:
    built = images.index([images.image(1)])
    raws = {manifest.digest: manifest.raw for manifest in built.manifests}
    read: list[str] = []

    def content(descriptor: Descriptor) -> bytes:
        read.append(str(descriptor.digest))
        return raws[str(descriptor.digest)]

    seen: list[str] = []
    children = children_handler(content)

    def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        seen.append(str(descriptor.digest))
        return children(descriptor)

    root = Descriptor(media_type=built.root.media_type, digest=Digest.parse(built.root.digest), size=built.root.size)
    walk(handle, root)
    assert seen == [built.manifests[-1].digest, built.manifests[0].digest, *built.blobs]
    assert read == [built.manifests[-1].digest, built.manifests[0].digest]


@pytest.mark.parametrize("media_type", [images.OCI_LAYER, images.OCI_CONFIG, "text/plain", "application/vnd.in-toto+json"])
def test_leaves_are_not_read(media_type: str) -> None:
    assert children_handler(lambda _: pytest.fail("read"))(described(media_type)) == ()


def test_schema_1_is_refused_unread() -> None:
    with pytest.raises(Unsupported, match=r"^schema1 sha256:[0-9a-f]{64}: .*schema 1"):
        children_handler(lambda _: pytest.fail("read"))(described(mediatypes.DOCKER_SCHEMA1_SIGNED))


def test_a_bad_manifest_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"^index sha256:[0-9a-f]{64}: not JSON"):
        children_handler(lambda _: b"<html>")(INDEX)


@pytest.mark.parametrize(
    ("platforms", "chosen"),
    [
        (wishes("linux/amd64"), [AMD64]),
        (wishes("linux/arm64", "linux/x86_64"), [AMD64, ARM64]),
        (wishes("linux/arm"), [ARM_V7]),
        (wishes("linux/arm/v6"), [ARM_V6]),
        (wishes("linux/amd64", "linux/s390x"), [AMD64]),
        (None, LISTED),
    ],
)
def test_filter_platforms(platforms: list[Platform] | None, chosen: list[Descriptor]) -> None:
    handler = filter_platforms(answering(*LISTED), platforms)
    assert list(handler(INDEX)) == chosen
    assert list(handler(INDEX)) == chosen


def attesting(about: Descriptor, *, platform: str = "unknown/unknown", kind: str = "attestation-manifest") -> Descriptor:
    pairs = (("vnd.docker.reference.digest", str(about.digest)), ("vnd.docker.reference.type", kind))
    return replace(described(mediatypes.OCI_MANIFEST, f"{about} {platform} {kind}", platform=platform), annotations=pairs)


def test_attestations_of_selected_platforms_are_kept_in_the_order_of_the_index() -> None:
    first, second = attesting(AMD64), attesting(ARM64)
    handler = filter_platforms(answering(second, AMD64, ARM64, first), wishes("linux/arm64"))
    assert list(handler(INDEX)) == [second, ARM64]


@pytest.mark.parametrize(
    "odd",
    [attesting(AMD64), attesting(ARM64, kind="other"), attesting(ARM64, platform="linux/amd64"), ATTESTATION],
    ids=["another platform", "another type", "a platform of its own", "no annotations"],
)
def test_what_is_no_attestation_of_a_selected_platform_is_left_out(odd: Descriptor) -> None:
    assert list(filter_platforms(answering(odd, AMD64, ARM64), wishes("linux/arm64"))(INDEX)) == [ARM64]


def test_an_attestation_does_not_stand_in_for_a_missing_platform() -> None:
    with pytest.raises(NotFound):
        filter_platforms(answering(attesting(AMD64)), wishes("linux/amd64"))(INDEX)


def test_wishes_from_a_generator_serve_every_index() -> None:
    handler = filter_platforms(answering(*LISTED), (platform for platform in wishes("linux/amd64")))
    assert [list(handler(INDEX)), list(handler(INDEX))] == [[AMD64], [AMD64]]


def test_to_wish_for_nothing_is_not_to_wish_for_all() -> None:
    with pytest.raises(NotFound):
        filter_platforms(answering(*LISTED), [])(INDEX)


def test_what_does_not_say_its_platform_passes() -> None:
    assert list(filter_platforms(answering(UNSAID, AMD64), wishes("linux/s390x"))(INDEX)) == [UNSAID]


def test_no_platform_that_serves_is_an_error_that_lists_them() -> None:
    with pytest.raises(NotFound) as refusal:
        filter_platforms(answering(ARM64, AMD64, AMD64, ATTESTATION), wishes("linux/s390x", "windows/amd64"))(INDEX)
    assert str(refusal.value) == (
        f"{INDEX}: no manifest for linux/s390x, windows/amd64; it has 'linux/amd64', 'linux/arm64', 'unknown/unknown'"
    )


def test_of_an_index_for_very_many_platforms_some_are_listed() -> None:
    many = [described(platform=f"linux/{number:04}{'x' * 1000}") for number in range(1000)]
    with pytest.raises(NotFound) as refusal:
        filter_platforms(answering(*many), wishes("linux/amd64"))(INDEX)
    assert str(refusal.value).endswith(" and 980 more")
    assert len(str(refusal.value)) < 10_000


def test_no_platform_of_an_index_breaks_the_line() -> None:
    odd = Descriptor(
        media_type=mediatypes.OCI_MANIFEST, digest=A.digest, size=1, platform=Platform(os="a\n\x1b[2J", architecture="b")
    )
    with pytest.raises(NotFound) as refusal:
        filter_platforms(answering(odd), wishes("linux/amd64"))(INDEX)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("descriptor", [AMD64, described(), described(mediatypes.OCI_ARTIFACT)])
def test_only_indexes_are_filtered(descriptor: Descriptor) -> None:
    assert list(filter_platforms(answering(*LISTED), wishes("linux/amd64"))(descriptor)) == LISTED


def test_an_empty_index_passes_the_filter() -> None:
    assert list(filter_platforms(answering(), wishes("linux/amd64"))(INDEX)) == []


@pytest.mark.parametrize(("limit", "chosen"), [(1, LISTED[:1]), (2, LISTED[:2]), (9, LISTED)])
def test_limit_manifests(limit: int, chosen: list[Descriptor]) -> None:
    assert list(limit_manifests(answering(*LISTED), limit)(INDEX)) == chosen


def test_only_indexes_are_limited() -> None:
    assert list(limit_manifests(answering(A, B), 1)(AMD64)) == [A, B]


def test_an_index_without_manifests_cannot_be_limited() -> None:
    with pytest.raises(NotFound, match=r"^index sha256:[0-9a-f]{64}: lists no manifests$"):
        limit_manifests(answering(), 1)(INDEX)


def test_the_signals_are_no_errors_of_the_tree() -> None:
    assert not issubclass(SkipChildren, DistError)
    assert not issubclass(StopChain, DistError)
