"""A repository at several registries: registry mirrors are tried in order, then the origin, the registry in the reference."""

import logging
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError, NotFound, Unavailable
from prefect_dist.remotes import referrers
from prefect_dist.remotes.errors import ANSWER_CHARS, RegistryError, with_message
from prefect_dist.remotes.fetcher import Fetcher
from prefect_dist.remotes.remote import Source

_log = logging.getLogger(__name__)


class MirroredSource(Source):
    """Reads from the first registry that succeeds. Thread-safe.

    `fetchers` are those of the registry mirrors, then the origin's. All sources of a run share `distrusted`, the digests with
    wrong bytes: only the origin is asked for these (containerd #11925).
    """

    def __init__(self, fetchers: Sequence[Fetcher], distrusted: set[Digest]) -> None:
        self._fetchers = tuple(fetchers)
        self._distrusted = distrusted

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """Return the descriptor of a tag or digest, see `Source.resolve`."""
        return self._first(lambda fetcher: fetcher.resolve(reference, media_type=media_type))

    def download(self, reference: Reference) -> Descriptor:
        """Return the descriptor of a manifest by tag or digest, with the content in `data`, unverified."""
        return self._first(lambda fetcher: fetcher.download(reference))

    def _first(self, ask: Callable[[Fetcher], Descriptor]) -> Descriptor:
        errors: list[DistError] = []
        for fetcher in self._fetchers:
            try:
                return ask(fetcher)
            except DistError as exc:
                errors.append(exc)
        raise _combine_errors(self._fetchers, errors)

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes of `descriptor` from `offset` to its size, unverified.

        If a registry fails in the middle, the next registry resumes at the same byte.
        """
        errors: list[DistError] = []
        fetchers = self._fetchers[-1:] if descriptor.digest in self._distrusted else self._fetchers
        for fetcher in fetchers:
            try:
                for piece in fetcher.fetch(descriptor, offset=offset):
                    offset += len(piece)
                    yield piece
            except DistError as exc:
                errors.append(exc)
            else:
                return
        raise _combine_errors(fetchers, errors)

    def distrust(self, descriptor: Descriptor) -> None:
        """Note that the received bytes were wrong: fetch this content only from the origin from now on."""
        self._distrusted.add(descriptor.digest)
        self._fetchers[-1].distrust(descriptor)

    def tags(self) -> Iterator[str]:
        """Yield the origin's tags: a mirror may list only the tags pulled through it.

        If the origin is unreachable, the tags of the first working mirror are used, with a warning.
        """
        *mirrors, own = self._fetchers
        try:
            listed = _start_listing(own.tags())
        except (Unavailable, NotFound) as exc:
            if isinstance(exc, RegistryError):
                raise
            listed = _list_at_mirror(mirrors, exc)
        yield from listed

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """Yield the referrers of `descriptor`, each once, from the first registry with any.

        A cache without referrers may simply not know of them, so an empty list does not end the search.
        """
        errors: list[DistError] = []
        seen: set[Digest] = set()
        for fetcher in self._fetchers:
            try:
                for one in fetcher.referrers(descriptor, artifact_type=artifact_type):
                    if one.digest not in seen:
                        seen.add(one.digest)
                        yield one
            except DistError as exc:
                errors.append(exc)
            else:
                if seen or fetcher is self._fetchers[-1]:
                    return
        raise _combine_errors(self._fetchers, errors)

    def signatures(self, descriptor: Descriptor, *, tags: Container[str] | None = None) -> Iterator[tuple[str, Descriptor]]:
        """Yield cosign's existing digest tags of `descriptor` with their descriptors; only from `tags`, if given."""
        return referrers.signatures(self, self._fetchers[-1].locator, descriptor.digest, tags=tags)


def _list_at_mirror(mirrors: Sequence[Fetcher], failure: DistError) -> Iterator[str]:
    for mirror in mirrors:
        with suppress(DistError):
            listed = _start_listing(mirror.tags())
            _log.warning("%s; using the tags of the registry mirror %s, which may be incomplete", failure, mirror.locator)
            return listed
    raise failure


def _start_listing(tags: Iterator[str]) -> Iterator[str]:
    """Request the first tag now, to notice a failing registry here, and return all tags."""
    return chain(list(islice(tags, 1)), tags)


def _combine_errors(fetchers: Sequence[Fetcher], errors: Sequence[DistError]) -> DistError:
    """Return the most informative error, with the answers of the other registries in its message."""
    chosen = most_informative(errors)
    others = [
        f"; at {fetcher.locator}: {_answer(error)[:ANSWER_CHARS]}"
        for fetcher, error in zip(fetchers, errors, strict=True)
        if error is not chosen
    ]
    return with_message(chosen, f"{chosen.message}{''.join(others)}", subject=chosen.subject)


def _answer(error: DistError) -> str:
    return error.exchange.answer if isinstance(error, RegistryError) else str(error)


def most_informative(errors: Sequence[DistError]) -> DistError:
    """Return the error with the best explanation of the failure. The last error is the origin's.

    The origin's error wins if the origin answered (containerd #3868). Otherwise denied > not found > unreachable.
    """
    own = errors[-1]
    return own if _rank(own) else max(reversed(errors), key=_rank)


def _rank(error: DistError) -> int:
    if not isinstance(error, RegistryError) and isinstance(error, Unavailable | NotFound):  # NotFound of an unknown host
        return 0
    return 1 if isinstance(error, NotFound) else 2
