"""The conformance suite of remotes: tests for pytest that authors of plug-ins can run. dist itself does not import this module.

    from prefect_dist.remotes.conformance import RemoteConformance, RemoteSample

    class TestMyRemote(RemoteConformance):
        @pytest.fixture
        def sample(self, tmp_path):
            ...
            return RemoteSample(remote=remote, image=reference, root=descriptor, content={descriptor: raw}, missing=other)

Each test gets a new sample. A test without the necessary part of the sample is skipped.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar
from unittest import SkipTest

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound, Unsupported
from prefect_dist.remotes.remote import Ability, Remote, Source, Target
from prefect_dist.remotes.remotes import Remotes
from prefect_dist.storage import ContentStore, open_store

T = TypeVar("T")
_OFFSETS = 40
_THREADS = 8
_WAIT_S = 30.0
_OTHER = Digest.of(b"content that no place has")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSample:
    """A remote with an image for the conformance suite.

    Attributes:
        remote: the remote, or the remotes of a run, which find an installed plug-in by its scheme. The tests abort it.
        image: a reference of the image, without a digest.
        root: the descriptor that `image` resolves to.
        content: the bytes of `root` and of all other content of the image. One content of several MiB makes the test of
            cancellation complete.
        missing: a reference that resolves to nothing.
        other: the root of another image at the same place. A reference with the tag of `image` and the digest of `other` has to
            resolve to `other`. None skips the test.
        tags: the tags of the place; None if the remote does not have the ability "tags".
        repositories: the argument of `list_repositories` and the repositories; None without the ability "repositories".
        referrers: the referrers of `root`; None without the ability "referrers".
        target: a reference with a tag, to which the tests push the image; None if the place is read-only.
        damage: replaces the bytes of a content at the place by other bytes of the same size; None skips the test.
    """

    remote: Remote | Remotes
    image: Reference
    root: Descriptor
    content: Mapping[Descriptor, bytes]
    missing: Reference
    other: Descriptor | None = None
    tags: frozenset[str] | None = None
    repositories: tuple[str, frozenset[str]] | None = None
    referrers: frozenset[Digest] | None = None
    target: Reference | None = None
    damage: Callable[[Descriptor], object] | None = None

    @property
    def abilities(self) -> frozenset[Ability]:
        """The abilities that the remote states."""
        remote = self.remote.find(self.image) if isinstance(self.remote, Remotes) else self.remote
        return remote.abilities

    def open_source(self) -> Source:
        """Return the source of the image."""
        return self.remote.open_source(self.image)


class RemoteConformance:
    """The tests. A subclass, whose name starts with `Test`, defines the fixture `sample`."""

    def test_a_reference_resolves_to_the_root(self, sample: RemoteSample) -> None:
        """The digest and the size are exact, and the media type is known."""
        _assert_same(sample.open_source().resolve(sample.image), sample.root, at=sample.image)

    def test_the_name_of_an_image_is_its_reference(self, sample: RemoteSample) -> None:
        """The name of an image in the content store leads to the image again."""
        found = sample.remote.resolve(sample.image)
        assert found.name == str(sample.image), f"expected the name {sample.image}, got {found.name}"
        assert Reference.parse(found.name) == sample.image, f"{found.name} is parsed as another reference"
        _assert_same(found.descriptor, sample.root, at=sample.image)

    def test_a_digest_resolves_to_its_content(self, sample: RemoteSample) -> None:
        """A reference with the digest of the root resolves to the root."""
        by_digest = sample.image.with_digest(sample.root.digest)
        _assert_same(sample.open_source().resolve(by_digest), sample.root, at=by_digest)

    def test_a_pinned_digest_wins_over_the_tag(self, sample: RemoteSample) -> None:
        """A tag in front of the digest, which may have moved since, does not count."""
        other = _require(sample.other)
        pinned = replace(sample.image, object=f"{sample.image.tag or ''}@{other.digest}")
        found = sample.open_source().resolve(pinned)
        assert found.digest == other.digest, f"{pinned}: expected {other.digest}, got {found.digest}"

    def test_an_unknown_digest_never_resolves_to_another(self, sample: RemoteSample) -> None:
        """A digest that the place does not have raises NotFound, or InvalidInput if the place has no digests."""
        with _expect(NotFound, InvalidInput):
            sample.open_source().resolve(sample.image.with_digest(_OTHER))

    def test_a_missing_image_is_not_found(self, sample: RemoteSample) -> None:
        """A reference without an image raises NotFound."""
        with _expect(NotFound):
            sample.remote.open_source(sample.missing).resolve(sample.missing)

    def test_missing_content_is_not_found(self, sample: RemoteSample) -> None:
        """A descriptor of content that the place does not have raises NotFound, when the first byte is read at the latest."""
        absent = Descriptor(media_type="application/octet-stream", digest=_OTHER, size=25)
        with _expect(NotFound):
            b"".join(sample.open_source().fetch(absent))

    def test_all_content_is_fetched_byte_for_byte(self, sample: RemoteSample) -> None:
        """All content of the image can be fetched, in any order, from one source."""
        source = sample.open_source()
        for descriptor, raw in reversed(list(sample.content.items())):
            _assert_bytes(source, descriptor, raw, offset=0)

    def test_a_fetch_from_an_offset_yields_the_rest(self, sample: RemoteSample) -> None:
        """Resumed transfers start in the middle. An offset equal to the size yields nothing."""
        source = sample.open_source()
        for descriptor, raw in sample.content.items():
            step = max(1, len(raw) // _OFFSETS)
            for offset in sorted({*range(0, len(raw), step), max(0, len(raw) - 1), len(raw)}):
                _assert_bytes(source, descriptor, raw, offset=offset)

    def test_threads_fetch_from_one_source(self, sample: RemoteSample) -> None:
        """Parallel transfers do not mix their bytes."""
        source = sample.open_source()
        wanted = list(sample.content.items()) * _THREADS
        with ThreadPoolExecutor(_THREADS) as threads:
            for done in [threads.submit(_assert_bytes, source, one, raw, offset=0) for one, raw in wanted]:
                done.result()

    def test_threads_open_the_same_place(self, sample: RemoteSample) -> None:
        """Several units of work open the source of one image at the same time."""
        with ThreadPoolExecutor(_THREADS) as threads:
            for found in threads.map(lambda _: sample.open_source().resolve(sample.image), range(4 * _THREADS)):
                _assert_same(found, sample.root, at=sample.image)

    def test_wrong_bytes_reach_the_store_and_stay_invisible(self, sample: RemoteSample) -> None:
        """The store refuses the wrong bytes as Corrupt. A remote may find them itself, but must not replace or hide them."""
        damage = _require(sample.damage)
        wanted = max(sample.content, key=lambda one: one.size)
        damage(wanted)
        with tempfile.TemporaryDirectory() as directory, open_store(directory) as store:
            with _expect(Corrupt):
                _copy(sample.open_source(), wanted, store)
            assert not store.holds(wanted), f"the store has wrong bytes as {wanted}"

    def test_abort_ends_transfers_within_seconds(self, sample: RemoteSample) -> None:
        """A transfer in flight ends with an error of dist, unless its bytes were received, and later transfers are refused."""
        source = sample.open_source()
        wanted, raw = max(sample.content.items(), key=lambda item: item[0].size)
        started, go = threading.Event(), threading.Event()

        def read() -> bytes:
            pieces = iter(source.fetch(wanted))
            first = next(pieces, b"")
            started.set()
            go.wait(_WAIT_S)
            return first + b"".join(pieces)

        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(read)
            assert started.wait(_WAIT_S), f"the transfer did not start within {_WAIT_S} s"
            began = time.monotonic()
            sample.remote.abort()
            go.set()
            error = running.exception(_WAIT_S)
            seconds = time.monotonic() - began
        assert error is None or isinstance(error, DistError), f"expected a DistError, got {error!r}"
        assert error is not None or running.result() == raw, "the aborted transfer ended early without an error"
        assert seconds < _WAIT_S, f"the transfer ended {seconds:.0f} s after the abort"
        with _expect(DistError):
            b"".join(source.fetch(wanted))

    def test_a_second_abort_and_a_close_raise_no_error(self, sample: RemoteSample) -> None:
        """The end of a cancelled run aborts again."""
        sample.open_source()
        sample.remote.abort()
        sample.remote.abort()
        sample.remote.close()

    def test_the_abilities_are_those_of_the_sample(self, sample: RemoteSample) -> None:
        """The remote states exactly the abilities for which the sample has values."""
        values = {
            "tags": sample.tags,
            "repositories": sample.repositories,
            "referrers": sample.referrers,
            "push": sample.target,
        }
        expected = {name for name, value in values.items() if value is not None}
        assert sample.abilities == expected, f"the remote states {sorted(sample.abilities)}, the sample has {sorted(expected)}"

    def test_tags_are_listed_or_refused(self, sample: RemoteSample) -> None:
        """Each tag is listed once; without the ability, the error is Unsupported."""
        source = sample.open_source()
        if sample.tags is None:
            with _expect(Unsupported):
                list(source.tags())
            return
        found = list(source.tags())
        assert sorted(found) == sorted(sample.tags), f"expected the tags {sorted(sample.tags)}, got {sorted(found)}"

    def test_repositories_are_listed_or_refused(self, sample: RemoteSample) -> None:
        """Each repository is listed once; without the ability, the error is Unsupported."""
        if sample.repositories is None:
            with _expect(Unsupported):
                list(sample.remote.list_repositories(sample.image.host))
            return
        place, expected = sample.repositories
        found = list(sample.remote.list_repositories(place))
        assert sorted(found) == sorted(expected), f"expected the repositories {sorted(expected)}, got {sorted(found)}"

    def test_referrers_are_listed_or_refused(self, sample: RemoteSample) -> None:
        """Each referrer is listed once; without the ability, the error is Unsupported."""
        source = sample.open_source()
        if sample.referrers is None:
            with _expect(Unsupported):
                list(source.referrers(sample.root))
            with _expect(Unsupported):
                list(source.signatures(sample.root))
            return
        found = [one.digest for one in source.referrers(sample.root)]
        assert sorted(map(str, found)) == sorted(map(str, sample.referrers)), f"unexpected referrers: {found}"

    def test_an_image_is_pushed_or_refused(self, sample: RemoteSample) -> None:
        """A pushed image is there, byte for byte, under its tag; without the ability, the error is Unsupported."""
        if sample.target is None:
            with _expect(Unsupported):
                sample.remote.open_target(sample.image)
            return
        target, tag = sample.remote.open_target(sample.target), sample.target.tag
        assert tag, "the target of a sample needs a tag"
        for descriptor, raw in sample.content.items():
            if not descriptor.is_manifest:
                _upload(target, descriptor, raw)
        for descriptor, raw in sample.content.items():
            if descriptor.is_manifest:
                target.put(raw, descriptor, tag=tag if descriptor == sample.root else None)
        assert target.has(sample.root, tag=tag), f"{sample.target}: the pushed tag does not resolve to the manifest"
        source = sample.remote.open_origin(sample.target)
        assert source.resolve(sample.target).digest == sample.root.digest, f"{sample.target}: resolves to other content"
        for descriptor, raw in sample.content.items():
            _assert_bytes(source, descriptor, raw, offset=0)

    def test_a_push_of_wrong_bytes_is_refused(self, sample: RemoteSample) -> None:
        """Wrong bytes never become visible."""
        target = sample.remote.open_target(_require(sample.target))
        raw = b"right"
        blob = Descriptor(media_type="application/octet-stream", digest=Digest.of(raw), size=len(raw))
        with _expect(Corrupt, InvalidInput):
            _upload(target, blob, b"wrong")
        assert not target.has(blob), "the place has wrong bytes"


def _require(value: T | None) -> T:
    if value is None:
        raise SkipTest("the sample does not have this part")
    return value


@contextmanager
def _expect(*kinds: type[DistError]) -> Iterator[None]:
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        yield
    except kinds as exc:
        text = str(exc)
        assert text.isprintable(), f"expected a message in one line, got {text!r}"
    except Exception as exc:
        raise AssertionError(f"expected {names}, got {exc!r}") from exc
    else:
        raise AssertionError(f"expected {names}, got no error")


def _assert_same(found: Descriptor, expected: Descriptor, *, at: Reference) -> None:
    assert found.key == expected.key, f"{at}: expected {expected.key}, got {found.key}"


def _assert_bytes(source: Source, descriptor: Descriptor, raw: bytes, *, offset: int) -> None:
    pieces = list(source.fetch(descriptor, offset=offset))
    assert all(isinstance(piece, bytes) for piece in pieces), f"{descriptor}: expected bytes from offset {offset}"
    found = b"".join(pieces)
    assert found == raw[offset:], f"{descriptor}: {len(found)} wrong bytes from offset {offset}, expected {len(raw) - offset}"


def _copy(source: Source, descriptor: Descriptor, store: ContentStore) -> None:
    with store.writer(str(descriptor.digest), expected=descriptor.digest, total=descriptor.size) as writer:
        for piece in source.fetch(descriptor):
            writer.write(piece)
        writer.commit()


def _upload(target: Target, blob: Descriptor, raw: bytes) -> None:
    def read(offset: int) -> Iterator[bytes]:
        yield raw[offset:]

    if not target.has(blob):
        target.upload(blob, read, observer=lambda _offset, _gained: None)
