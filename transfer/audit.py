"""Audits the tags of a repository: the content below each tag, and the referrers.

A tag may resolve to the right digest although content below the tag is missing: after a deletion, a failed garbage collection,
or an interrupted copy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest
from prefect_dist.ocispec.children import children_reader, filter_platforms, walk_tree, without_foreign
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound
from prefect_dist.ocispec.platform import Platforms
from prefect_dist.remotes import Source, Target
from prefect_dist.transfer.session import Session


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class Expected:
    """The expected state of a tag.

    Attributes:
        platforms: the mirrored platforms of an index; None is every platform.
        referrers: the expected referrers with their digest tags. The tag is None for a referrer in the registry's list.
    """

    target: Reference
    digest: Digest
    platforms: Platforms = None
    referrers: Mapping[Digest, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Finding:
    """The result of an audit of one tag: a line for each fault, and the descriptor; None if the tag does not exist."""

    faults: tuple[str, ...]
    root: Descriptor | None


class _Unfinished(dict[tuple[Expected, ...], "_Auditor"]):
    """The auditors of tags whose last audit failed."""


def audit_tags(session: Session, expected: Sequence[Expected]) -> list[Finding | DistError]:
    """Return the finding, or the error, for each tag. The tags are in one repository.

    After an error, the run keeps the findings until the same tags are audited again without an error.

    Raises:
        Stopped: the run was cancelled.
    """
    place, key, unfinished = expected[0].target, tuple(expected), session.memo(_Unfinished)
    auditor = unfinished.pop(key, None)
    if auditor is None:
        auditor = _Auditor(session.remotes.open_origin(place), session.remotes.open_target(place))
    findings = [session.cancel.catch_error(partial(auditor.audit, one)) for one in expected]
    if any(isinstance(one, DistError) for one in findings):
        unfinished[key] = auditor
    return findings


class _Auditor:
    """Audits tags of one repository. Each piece of content is looked up once."""

    def __init__(self, source: Source, target: Target) -> None:
        self._source, self._target = source, target
        self._seen: dict[object, str | None] = {}
        self._documents: dict[Digest, bytes] = {}
        self._resolved: dict[Reference, Descriptor | None] = {}
        self._listed: dict[Digest, frozenset[Digest]] = {}

    def audit(self, expected: Expected) -> Finding:
        """Return the faults of a tag and its root.

        Raises:
            DistError: an error of the registry.
        """
        root = self._resolve(expected.target)
        return Finding(faults=tuple(dict.fromkeys(self._faults(expected, root))), root=root)

    def _faults(self, expected: Expected, root: Descriptor | None) -> Iterator[str]:
        yield from self._image(expected.target, root, expected.digest, expected.platforms, missing=str(expected.digest))
        for digest, tag in expected.referrers.items():
            yield from self._referrer(expected.target, digest, tag)

    def _image(
        self, target: Reference, there: Descriptor | None, digest: Digest, platforms: Platforms, *, missing: str
    ) -> Iterator[str]:
        """Yield the faults of a tag that resolves to `there`, and of the expected image of the tag."""
        if there is None:
            yield f"{target.tag or target} does not exist"
        elif there.digest != digest:
            yield f"{target.tag or target} resolves to {there.digest}, expected {digest}"
        root = there if there is not None and there.digest == digest else self._manifest(target, digest)
        if root is None:
            yield f"{missing} is missing"
        else:
            yield from self._tree(root, platforms)

    def _manifest(self, target: Reference, digest: Digest) -> Descriptor | None:
        return self._resolve(target.with_digest(digest))

    def _resolve(self, reference: Reference) -> Descriptor | None:
        """Return the descriptor of a reference, or None if the reference does not exist. The registry gets one request."""
        if reference not in self._resolved:
            try:
                self._resolved[reference] = self._source.resolve(reference)
            except NotFound:
                self._resolved[reference] = None
        return self._resolved[reference]

    def _tree(self, root: Descriptor, platforms: Platforms) -> Iterator[str]:
        """Yield the faults of the content in a tree. Content below a faulty manifest is skipped."""
        wanted = without_foreign(filter_platforms(children_reader(self._read), platforms))

        def children(descriptor: Descriptor) -> Sequence[Descriptor]:
            return wanted(descriptor) if descriptor.is_manifest and self._look(descriptor) is None else ()

        for descriptor in walk_tree(children, root):
            if (fault := self._look(descriptor)) is not None:
                yield fault

    def _look(self, descriptor: Descriptor) -> str | None:
        """Return the fault of one piece of content, or None. Content is requested once: manifests by GET, blobs by HEAD."""
        if descriptor.key not in self._seen:
            try:
                there = bool(self._read(descriptor)) if descriptor.is_manifest else self._target.has(descriptor)
                self._seen[descriptor.key] = None if there else f"{descriptor} is missing"
            except NotFound:
                self._seen[descriptor.key] = f"{descriptor} is missing"
            except (Corrupt, InvalidInput) as exc:
                self._seen[descriptor.key] = str(exc)
        return self._seen[descriptor.key]

    def _read(self, descriptor: Descriptor) -> bytes:
        if descriptor.digest not in self._documents:
            if descriptor.size > manifest.MAX_BYTES:
                raise InvalidInput(
                    f"expected at most {manifest.MAX_BYTES} bytes, its descriptor states {descriptor.size}",
                    subject=descriptor,
                )
            raw = b"".join(self._source.fetch(descriptor))
            self._documents[descriptor.digest] = descriptor.verify(raw, source="the target")
        return self._documents[descriptor.digest]

    def _referrer(self, target: Reference, digest: Digest, tag: str | None) -> Iterator[str]:
        if tag is not None:
            place = target.with_tag(tag)
            yield from self._image(place, self._resolve(place), digest, None, missing=f"referrer {digest}")
            return
        root = self._manifest(target, digest)
        if root is None:
            yield f"referrer {digest} is missing"
            return
        yield from self._tree(root, None)
        if self._look(root) is None and not self._is_listed(root):
            yield f"referrer {digest} is not in the list of referrers of its subject"

    def _is_listed(self, referrer: Descriptor) -> bool:
        about = manifest.subject(self._read(referrer), referrer.media_type, at=str(referrer))
        if about is None:
            return True
        if about.digest not in self._listed:
            self._listed[about.digest] = frozenset(one.digest for one in self._source.referrers(about))
        return referrer.digest in self._listed[about.digest]
