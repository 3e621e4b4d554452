"""The tags of one repository and the content that the tags need.

Some registries cannot delete a tag. They can only delete a manifest, together with all its tags. The graph shows which tags
would lose content. Each tag is resolved once and each manifest is read once.

A registry's list of tags may be incomplete, so the tags that the mirror knows are resolved, too. If the list lacks an existing
tag, further tags may be missing, and the content of further tags is unknown.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest
from prefect_dist.ocispec.errors import Conflict, NotFound
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from prefect_dist.ocispec.units import format_count


class TagSource(Protocol):
    """Read access to a repository at its own registry, without registry mirrors."""

    @property
    def has_referrers_api(self) -> bool:
        """False once the registry is known to have no referrers API."""

    def tags(self) -> Iterator[str]:
        """Return the tags of the repository."""

    def referrers(self, descriptor: Descriptor, *, artifact_type: str | None = None) -> Iterator[Descriptor]:
        """Return the manifests with `descriptor` as the subject."""


@dataclass(frozen=True, slots=True)
class _Links:
    """The links of one manifest: the `children`; `about` is the subject, and the referrers in the registry's list."""

    children: tuple[Descriptor, ...] = ()
    about: tuple[Descriptor, ...] = ()

    @property
    def all(self) -> tuple[Descriptor, ...]:
        """The children, the subject and the referrers."""
        return (*self.children, *self.about)


class TagGraph:
    """The tags of a repository and the manifests below the tags.

    A tag is expendable if it may be removed, and only while it resolves to the digest given to `allow`. The referrers that the
    mirror copied with an expendable tag are own referrers. A fallback tag or cosign tag that has only own referrers does not
    keep its subject.
    """

    def __init__(
        self,
        repository: Reference,
        source: TagSource,
        *,
        resolve: Callable[[Reference], Descriptor | None],
        read: Callable[[Descriptor], bytes],
        workers: int,
    ) -> None:
        self._repository, self._source, self._resolve, self._read = repository, source, resolve, read
        self._workers = workers
        self._expendable: dict[str, Digest] = {}
        self._own_referrers: set[Digest] = set()
        self._tags: dict[str, Descriptor] = {}
        self._known: set[str] = set()
        self._listed: frozenset[str] | None = None
        self._resolved: set[str] = set()
        self._links: dict[Digest, _Links] = {}
        self._is_loaded = False

    def allow(self, tag: str, digest: Digest, own_referrers: Iterable[Digest]) -> None:
        """Make a tag expendable while the tag resolves to `digest`."""
        self._expendable[tag] = digest
        self._own_referrers |= {digest, *own_referrers}
        self.__dict__.pop("_kept", None)

    def disallow(self, tag: str) -> None:
        """Make a tag unexpendable."""
        del self._expendable[tag]
        self.__dict__.pop("_kept", None)

    def add_known(self, tags: Iterable[str]) -> None:
        """Add tags that the mirror knows. `load` resolves the tags, even if the registry does not list them."""
        new = {*tags} - self._known
        self._known |= new
        self._is_loaded = self._is_loaded and not new

    def load(self) -> None:
        """Resolve the tags and read the manifests below the tags. A call after a failure continues the work.

        Raises:
            Conflict: the registry's list of tags lacks an existing tag.
            DistError: a tag list, tag, manifest or list of referrers cannot be read.
        """
        if self._is_loaded:
            return
        if self._listed is None:
            self._listed = frozenset(self._source.tags())
        missing = sorted((self._listed | self._known) - self._resolved)
        with ThreadPoolExecutor(self._workers) as executor:
            for tag, found in zip(missing, executor.map(self._resolve_tag, missing), strict=True):
                self.set_tag(tag, found)
            self._check_list(self._listed)
            self._read_all(executor)
        self._is_loaded = True

    def _check_list(self, listed: frozenset[str]) -> None:
        """Raise an error if the registry's list of tags lacks an existing tag."""
        if unlisted := sorted(self._tags.keys() - listed):
            lacked = f"{unlisted[0]}, which resolves to {self._tags[unlisted[0]].digest}"
            more = f", and {format_count(len(unlisted) - 1, 'other tag')}" if len(unlisted) > 1 else ""
            raise Conflict(
                f"the list of tags lacks {lacked}{more}; no manifest is deleted, because tags that "
                "are not listed may need it; run again once the registry lists all tags",
                subject=self._repository.locator,
            )

    def set_tag(self, tag: str, descriptor: Descriptor | None) -> None:
        """Record the current descriptor of a tag; None if the tag does not exist. `load` reads new manifests."""
        self._resolved.add(tag)
        if self._tags.get(tag) == descriptor:
            return
        if descriptor is None:
            del self._tags[tag]
        else:
            self._tags[tag] = descriptor
            self._is_loaded = False
        self.__dict__.pop("_kept", None)

    def tags_of(self, digest: Digest) -> list[str]:
        """Return the tags with the digest `digest`."""
        return [tag for tag, descriptor in self._tags.items() if descriptor.digest == digest]

    def holder_of(self, digest: Digest) -> str | None:
        """Return a tag that would lose content if the manifest `digest` were deleted, or None.

        Expendable tags that resolve to `digest` itself do not count. Other expendable tags count while they exist.
        """
        if digest in self._kept:
            return self._kept[digest]
        others = ((tag, descriptor.digest) for tag, descriptor in self._tags.items() if descriptor.digest != digest)
        return next((tag for tag, root in others if self._is_expendable(tag) and digest in self._below(root)), None)

    @cached_property
    def _kept(self) -> dict[Digest, str]:
        """The content that unexpendable tags need, each piece with the first such tag."""
        kept = dict[Digest, str]()
        about = self._subjects_by_tag()
        for tag, descriptor in self._tags.items():
            if self._is_expendable(tag):
                continue
            subject = about.get(tag)
            if subject is None:
                self._keep(descriptor.digest, tag, kept)
            elif self._has_foreign_content(tag, descriptor.digest):
                self._keep(descriptor.digest, tag, kept)
                self._keep(subject, tag, kept)
        return kept

    def _keep(self, root: Digest, tag: str, kept: dict[Digest, str]) -> None:
        pending = [root]
        while pending:
            digest = pending.pop()
            if digest in kept:
                continue
            kept[digest] = tag
            links = self._links.get(digest, _Links())
            named = (self._tags[name].digest for name in _referrer_tags(digest) if name in self._tags)
            pending += [*(one.digest for one in links.all), *named]

    def _below(self, root: Digest) -> set[Digest]:
        """Return `root` and the children of `root` at any depth."""
        found, pending = set[Digest](), [root]
        while pending:
            digest = pending.pop()
            if digest not in found:
                found.add(digest)
                pending += (child.digest for child in self._links.get(digest, _Links()).children)
        return found

    def _is_expendable(self, tag: str) -> bool:
        return tag in self._expendable and self._tags[tag].digest == self._expendable[tag]

    def _subjects_by_tag(self) -> dict[str, Digest]:
        """Return the existing fallback tags and cosign tags, each with the digest of its subject."""
        known = {*self._links, *self._expendable.values()}
        return {tag: digest for digest in known for tag in _referrer_tags(digest) if tag in self._tags}

    def _has_foreign_content(self, tag: str, root: Digest) -> bool:
        """Return whether a fallback tag or cosign tag has a referrer that the mirror did not copy with an expendable tag."""
        is_fallback = "." not in tag
        referrers = {child.digest for child in self._links[root].children} if is_fallback else {root}
        return not referrers <= self._own_referrers

    def _resolve_tag(self, tag: str) -> Descriptor | None:
        return self._resolve(self._repository.with_tag(tag))

    def _read_all(self, executor: ThreadPoolExecutor) -> None:
        """Read the manifests below the tags, level by level."""
        roots = {root.digest: root for root in self._tags.values()}
        seen, level = set(roots), list(roots.values())
        while level:
            found = executor.map(lambda one: self._read_links(one, is_root=one.digest in roots), level)
            below = {one.digest: one for links in list(found) for one in links.all if one.is_manifest}
            level = [one for digest, one in below.items() if digest not in seen]
            seen |= below.keys()

    def _read_links(self, descriptor: Descriptor, *, is_root: bool) -> _Links:
        """Return the links of a manifest. Each manifest is read once."""
        if descriptor.digest not in self._links:
            try:
                self._links[descriptor.digest] = self._links_in(descriptor, self._read(descriptor))
            except NotFound:
                if is_root:
                    raise
                return _Links()  # an index may name manifests that the repository lacks
        return self._links[descriptor.digest]

    def _links_in(self, descriptor: Descriptor, raw: bytes) -> _Links:
        children = manifest.children(raw, descriptor.media_type, at=str(descriptor))
        subject = manifest.subject(raw, descriptor.media_type, at=str(descriptor))
        referrers = tuple(self._source.referrers(descriptor)) if self._source.has_referrers_api else ()
        return _Links(children, (*(() if subject is None else (subject,)), *referrers))


def _referrer_tags(subject: Digest) -> tuple[str, ...]:
    return (fallback_tag(subject), *cosign_tags(subject))
