"""A repository that several registries have: mirrors are asked in their order, the registry itself last."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice

from ocispec import Descriptor, Digest, Reference
from ocispec.errors import DistError, NotFound, Unavailable
from remotes import referrers
from remotes.errors import RegistryError
from remotes.fetcher import Fetcher

_log = logging.getLogger(__name__)


class Mirrored:
    """Reads from the first registry that answers. Thread-safe.

    `distrusted` is shared by all that read in a run: digests whose bytes were wrong, of which nobody but the registry itself is
    asked any more (containerd #11925).
    """

    def __init__(self, fetchers: Sequence[Fetcher], distrusted: set[Digest]) -> None:
        self._fetchers = tuple(fetchers)
        self._distrusted = distrusted

    def resolve(self, reference: Reference, *, media_type: str | None = None) -> Descriptor:
        """The descriptor of a tag or digest, see `Registries.resolve`."""
        errors: list[DistError] = []
        for fetcher in self._fetchers:
            try:
                return fetcher.resolve(reference, media_type=media_type)
            except DistError as exc:
                errors.append(exc)
        raise most_telling(errors)

    def fetch(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """The bytes of `descriptor` from `offset` on, unverified; where one breaks off, the next goes on."""
        errors: list[DistError] = []
        for fetcher in self._fetchers[-1:] if descriptor.digest in self._distrusted else self._fetchers:
            try:
                for piece in fetcher.fetch(descriptor, offset=offset):
                    offset += len(piece)
                    yield piece
            except DistError as exc:
                errors.append(exc)
            else:
                return
        raise most_telling(errors)

    def distrust(self, descriptor: Descriptor) -> None:
        """Ask no mirror for this content any more: what came was not it."""
        self._distrusted.add(descriptor.digest)
        self._fetchers[-1].distrust(descriptor)

    def tags(self) -> Iterator[str]:
        """The tags of the repository as the registry itself lists them: a mirror has those that somebody asked it for.

        Where the registry cannot be reached, those of the first mirror that lists them, with a warning.
        """
        *mirrors, own = self._fetchers
        try:
            listed = _begun(own.tags())
        except (Unavailable, NotFound) as exc:
            if isinstance(exc, RegistryError):
                raise
            listed = _listed_instead(mirrors, exc)
        yield from listed

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """The manifests about `descriptor`, of the first registry that lists any: a cache without one knows of none."""
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
        raise most_telling(errors)

    def signatures(self, descriptor: Descriptor) -> Iterator[tuple[str, Descriptor]]:
        """What cosign keeps about `descriptor` under its own tags, each of the first registry that has it."""
        return referrers.signatures(self, self._fetchers[-1].locator, descriptor.digest)


def _listed_instead(mirrors: Sequence[Fetcher], absent: DistError) -> Iterator[str]:
    for mirror in mirrors:
        with suppress(DistError):
            listed = _begun(mirror.tags())
            _log.warning("%s; these are the tags that %s lists, it need not have all", absent, mirror.locator)
            return listed
    raise absent


def _begun(tags: Iterator[str]) -> Iterator[str]:
    """The same tags, of which the first was asked for already: whoever lists them is there."""
    return chain(list(islice(tags, 1)), tags)


def most_telling(errors: Sequence[DistError]) -> DistError:
    """The error that says most about why nobody had it; of equals the last, which is the registry's own (containerd #3868)."""
    return max(reversed(errors), key=_weight)


def _weight(error: DistError) -> int:
    if isinstance(error, NotFound):
        return 1
    return 2 if isinstance(error, RegistryError) else 0
