"""Referrers of images in an archive: manifests with a `subject`, and manifests under cosign's digest tags.

`index.json` lists both as tags in the repository of their image. A fallback index, under the fallback tag `sha256-<hex>`, lists
the manifests whose subject has this digest (distribution-spec 1.1, "Referrers Tag Schema"). Cosign's manifests have digest
tags.

An export writes these tags (`tagged_manifests`). An import finds the referrers of each image again (`RelatedManifests`).
"""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from prefect_dist.ocispec import Descriptor, Digest, Reference, manifest, mediatypes
from prefect_dist.ocispec.children import Children
from prefect_dist.ocispec.errors import DistError, InvalidInput, Unsupported
from prefect_dist.ocispec.image_layout import INDEX, NAMES, serialize_index
from prefect_dist.ocispec.referrers import MAX_REFERRERS, Referrer, cosign_subject, fallback_tag, is_fallback_tag, make_entry
from prefect_dist.storage import presence
from prefect_dist.storage.archive import layout
from prefect_dist.storage.names import Name
from prefect_dist.storage.store import ContentStore

_log = logging.getLogger(__name__)
# An archive may list the same manifest many times, so the totals are limited, too.
_MAX_CANDIDATES, _MAX_CLAIMS = 100_000, 100_000
_MAX_BYTES = 64 * 1024 * 1024  # of manifests with a subject


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedManifest:
    """A manifest that an archive lists under a tag. `raw` is the content of a fallback index, which no store has."""

    name: str
    descriptor: Descriptor
    raw: bytes | None = None


def tagged_manifests(store: ContentStore, names: Iterable[Name]) -> tuple[TaggedManifest, ...]:
    """Return the tagged manifests by which importers find the referrers of `names`, sorted by tag.

    Raises:
        DistError: a referrer cannot be read.
    """
    listed: dict[tuple[str, Digest], dict[Digest, Descriptor]] = {}
    tagged: dict[str, TaggedManifest] = {}
    for name in names:
        repository = name.repository
        for referrer in name.referrers:
            descriptor = referrer.descriptor
            if referrer.tag is not None:
                called = f"{repository}:{referrer.tag}"
                tagged[called] = TaggedManifest(name=called, descriptor=descriptor)
            elif descriptor.is_manifest:
                raw = store.manifest(descriptor)
                subject = manifest.subject(raw, descriptor.media_type, at=str(descriptor))
                if subject is not None:
                    entries = listed.setdefault((repository, subject.digest), {})
                    entries[descriptor.digest] = make_entry(raw, descriptor, at=str(descriptor))
    for (repository, subject_digest), entries in listed.items():
        called = f"{repository}:{fallback_tag(subject_digest)}"
        tagged[called] = _fallback_index(called, entries)
    return tuple(tagged[called] for called in sorted(tagged))


def _fallback_index(called: str, entries: dict[Digest, Descriptor]) -> TaggedManifest:
    manifests = [entries[digest].to_json() for digest in sorted(entries, key=str)]
    raw = serialize_index(manifests)
    descriptor = Descriptor(media_type=mediatypes.OCI_INDEX, digest=Digest.of(raw), size=len(raw))
    return TaggedManifest(name=called, descriptor=descriptor, raw=raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReferrerCandidate:
    """A possible referrer of an image.

    `root` is the digest of the candidate's entry in `index.json`. `repositories` are the repositories of the entry, with None
    for any repository. The candidates of one entry share the set.
    """

    referrer: Referrer
    root: Digest
    repositories: set[str | None]


class ReferrersBeyondLimits(InvalidInput):
    """An archive has more manifests with a subject than this program keeps in memory."""


@dataclass(slots=True)
class RelatedManifests:
    """The possible referrers in an archive. Manifests that no image claims are imported as images.

    `of` finds the candidates by the tag of each entry in `index.json`: a digest tag leads to the entry itself, a fallback tag
    to the manifests in the fallback index, and an entry without a tag is a candidate if it has a subject. `claim` collects the
    candidates of one image, and follows their own referrers.
    """

    _store: ContentStore
    _children: Children
    _by_subject: dict[Digest, list[_ReferrerCandidate]] = field(default_factory=dict)
    _roots: set[Descriptor] = field(default_factory=set)
    _claimed: set[Digest] = field(default_factory=set)
    # The repositories of an entry, by its digest and the kind of its tag ("manifest" for no tag, "listing" for a fallback tag,
    # or the digest tag itself); None if the entry leads to no candidate.
    _repositories: dict[tuple[Digest, str], set[str | None] | None] = field(default_factory=dict)
    _described: dict[object, tuple[Digest, Descriptor] | None] = field(default_factory=dict)
    _completeness: dict[object, bool] = field(default_factory=dict)
    _candidates_left: int = field(default_factory=lambda: _MAX_CANDIDATES)
    _bytes_left: int = field(default_factory=lambda: _MAX_BYTES)
    _claims_left: int = field(default_factory=lambda: _MAX_CLAIMS)

    @classmethod
    def of(cls, store: ContentStore, roots: Iterable[Descriptor]) -> "RelatedManifests":
        """Find the manifests that may refer to other manifests among the entries of an `index.json`.

        Raises:
            ReferrersBeyondLimits: too many manifests.
        """
        related = cls(store, presence.present_children(store))
        for root in roots:
            try:
                has_candidates = related._add(root)
            except ReferrersBeyondLimits:
                raise
            except DistError as exc:  # the import of this entry as an image reports the error
                _log.debug("%s: not a referrer (%s)", root, exc)
                continue
            if has_candidates:
                related._roots.add(root)
        return related

    def may_refer(self, root: Descriptor) -> bool:
        """Return True if an entry of `index.json` may be a referrer or a fallback index."""
        return root in self._roots

    def is_claimed(self, root: Descriptor) -> bool:
        """Return True if an image has claimed the referrers of an entry of `index.json`."""
        return root.digest in self._claimed

    def claim(self, root: Descriptor, *, name: str) -> tuple[Referrer, ...]:
        """Return the direct and indirect referrers of an image and of the manifests below it, sorted by digest.

        An incomplete referrer is left out with a warning.

        Raises:
            Unsupported: too many referrers of this image, or of all images together.
            DistError: a manifest of the image cannot be read.
        """
        repository = Reference.parse(name).locator
        found: dict[Digest, Referrer] = {}
        pending = deque(self._manifests(root))
        met = set(pending)
        while pending:
            for candidate in self._by_subject.get(pending.popleft(), ()):
                digest = candidate.referrer.descriptor.digest
                is_better = digest not in found or candidate.referrer.tag is not None
                is_elsewhere = candidate.repositories.isdisjoint((None, repository))
                if is_elsewhere or not is_better or not self._is_complete(candidate, name):
                    continue
                if len(found) == MAX_REFERRERS:
                    raise Unsupported(f"expected at most {MAX_REFERRERS} referrers, found more", subject=name)
                self._claims_left -= 1
                if self._claims_left < 0:
                    raise Unsupported(
                        f"expected at most {_MAX_CLAIMS} referrers of all images together, found more", subject=name
                    )
                found[digest] = candidate.referrer
                self._claimed.add(candidate.root)
                more = [one for one in self._manifests(candidate.referrer.descriptor) if one not in met]
                met.update(more)
                pending.extend(more)
        return tuple(found[digest] for digest in sorted(found, key=str))

    def _add(self, root: Descriptor) -> bool:
        """Add the candidates from an entry of `index.json`. Return True if the entry leads to candidates.

        Tags lead only to referrers of images in the same repository. An entry without a tag may refer to an image in any
        repository.
        """
        repository, tag = layout.repository_and_tag(root)
        is_cosign = tag is not None and cosign_subject(tag) is not None
        kind = tag if tag is not None and is_cosign else "listing" if tag is not None and is_fallback_tag(tag) else "manifest"
        if kind == "manifest" and (tag is not None or not root.is_manifest):
            return False
        key = root.digest, kind
        if key not in self._repositories:
            self._repositories[key] = None
            repositories = set[str | None]()
            found = self._read(root, tag, kind)
            self._candidates_left -= len(found)
            if self._candidates_left < 0:
                raise ReferrersBeyondLimits(f"archive: expected at most {_MAX_CANDIDATES} referrers in {INDEX}, found more")
            for subject, referrer in found:
                candidate = _ReferrerCandidate(referrer=referrer, root=root.digest, repositories=repositories)
                self._by_subject.setdefault(subject, []).append(candidate)
            if found:
                self._repositories[key] = repositories
        if (known := self._repositories[key]) is None:
            return False
        known.add(None if kind == "manifest" else repository)
        return True

    def _read(self, root: Descriptor, tag: str | None, kind: str) -> list[tuple[Digest, Referrer]]:
        """Return the referrers from an entry of `index.json`, each with the digest of the subject."""
        bare = replace(root, annotations=tuple(pair for pair in root.annotations if pair[0] not in NAMES))
        if tag is not None and (subject := cosign_subject(tag)) is not None:
            return [(subject, Referrer(bare, tag))]
        listed = self._children(bare) if kind == "listing" else (bare,)
        distinct = {one.key: one for one in listed if one.is_manifest}
        described = [self._describe(one) for one in distinct.values()]
        return [(one[0], Referrer(one[1])) for one in described if one is not None]

    def _describe(self, listed: Descriptor) -> tuple[Digest, Descriptor] | None:
        """Return the subject's digest and the entry of a manifest in a list of referrers; None without a subject.

        Each manifest is parsed once.
        """
        if listed.key not in self._described:
            raw = self._store.manifest(listed)
            subject = manifest.subject(raw, listed.media_type, at=str(listed))
            if subject is not None:
                self._bytes_left -= len(raw)
                if self._bytes_left < 0:
                    raise ReferrersBeyondLimits(f"archive: expected at most {_MAX_BYTES} bytes of referrers, found more")
            self._described[listed.key] = (subject.digest, make_entry(raw, listed, at=str(listed))) if subject else None
        return self._described[listed.key]

    def _manifests(self, root: Descriptor) -> list[Digest]:
        present = presence.check(self._store, root, children=self._children).present
        return [one.digest for one in present if one.is_manifest]

    def _is_complete(self, candidate: _ReferrerCandidate, name: str) -> bool:
        """Return True if the store has all content of a referrer. The check and its warning happen once for each referrer."""
        descriptor = candidate.referrer.descriptor
        if descriptor.key not in self._completeness:
            self._completeness[descriptor.key] = self._check_complete(descriptor, name)
        return self._completeness[descriptor.key]

    def _check_complete(self, descriptor: Descriptor, name: str) -> bool:
        try:
            presence.require(self._store, descriptor, children=self._children, name=str(descriptor))
        except DistError as exc:
            _log.warning("%s: an incomplete referrer is not imported: %s", name, exc)
            return False
        return True


def merge_referrers(known: Sequence[Referrer], found: Sequence[Referrer]) -> tuple[Referrer, ...]:
    """Return the referrers of both sequences, each digest once, sorted by digest; `found` wins."""
    by_digest = {one.descriptor.digest: one for one in (*known, *found)}
    return tuple(by_digest[digest] for digest in sorted(by_digest, key=str))
