"""Referrers of images in an archive: manifests with a `subject`, and those that cosign keeps under digest tags.

`index.json` has them as tags in the repository of their image. A fallback index, under `sha256-<hex>`, lists the manifests that
name the subject with this digest (distribution-spec 1.1, "Referrers Tag Schema"). Cosign's manifests have their own tags.
"""

import logging
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import orjson

from ocispec import Descriptor, Digest, Reference, manifest, mediatypes
from ocispec.errors import DistError, InvalidInput, Unsupported
from ocispec.handlers import Handler
from ocispec.referrers import MAX_REFERRERS, Referrer, cosign_tags, entry, is_listing, tag_of
from storage import completeness
from storage.archive import layout
from storage.names import Name
from storage.store import ContentStore

_log = logging.getLogger(__name__)
# cosign-tag ::= algorithm "-" hex "." ( "sig" | "att" | "sbom" )
_COSIGN_TAG = re.compile(r"(sha256|sha512)-([0-9a-f]+)\.[a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedManifest:
    """A manifest that an archive has under a tag; `raw` is the content of a fallback index, which no store has."""

    name: str
    descriptor: Descriptor
    raw: bytes | None = None


def tagged_manifests(store: ContentStore, names: Iterable[Name]) -> tuple[TaggedManifest, ...]:
    """Return what an archive needs under tags so that the referrers of `names` are found, sorted by tag.

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
                    entries[descriptor.digest] = entry(raw, descriptor, at=str(descriptor))
    for (repository, subject_digest), entries in listed.items():
        called = f"{repository}:{tag_of(subject_digest)}"
        tagged[called] = _fallback_index(called, entries)
    return tuple(tagged[called] for called in sorted(tagged))


def _fallback_index(called: str, entries: dict[Digest, Descriptor]) -> TaggedManifest:
    manifests = [entries[digest].to_json() for digest in sorted(entries, key=str)]
    raw = orjson.dumps({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": manifests})
    descriptor = Descriptor(media_type=mediatypes.OCI_INDEX, digest=Digest.of(raw), size=len(raw))
    return TaggedManifest(name=called, descriptor=descriptor, raw=raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A manifest that may refer to an image; `root` is its entry in `index.json`, `repository` None for any."""

    referrer: Referrer
    root: Descriptor
    repository: str | None


@dataclass(slots=True)
class RelatedManifests:
    """The manifests of an archive that refer to others. Those that no image claims are images themselves."""

    _store: ContentStore
    _children: Handler
    _by_subject: dict[Digest, list[_Candidate]] = field(default_factory=dict)
    _roots: set[Descriptor] = field(default_factory=set)
    _claimed: set[Digest] = field(default_factory=set)

    @classmethod
    def of(cls, store: ContentStore, roots: Iterable[Descriptor]) -> "RelatedManifests":
        """Find the manifests that refer to others among the entries of an `index.json`."""
        related = cls(store, completeness.held_children(store))
        for root in roots:
            try:
                found = list(related._candidates(root))
            except DistError as exc:  # it is reported when it is imported as an image
                _log.debug("%s: no referrer (%s)", root, exc)
                continue
            for subject, candidate in found:
                related._by_subject.setdefault(subject, []).append(candidate)
                related._roots.add(root)
        return related

    def may_refer(self, root: Descriptor) -> bool:
        """Whether an entry of `index.json` may be a referrer, or a list of some."""
        return root in self._roots

    def is_claimed(self, root: Descriptor) -> bool:
        """Whether an image has claimed what an entry of `index.json` leads to."""
        return root.digest in self._claimed

    def claim(self, root: Descriptor, *, name: str) -> tuple[Referrer, ...]:
        """Return all that refers to an image, to its manifests and to one another, sorted by digest.

        A referrer that is not whole is left out with a warning.

        Raises:
            Unsupported: too many of them.
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
                if candidate.repository not in (None, repository) or not is_better or not self._is_whole(candidate, name):
                    continue
                if len(found) == MAX_REFERRERS:
                    raise Unsupported(f"{name}: expected at most {MAX_REFERRERS} referrers, there are more")
                found[digest] = candidate.referrer
                self._claimed.add(candidate.root.digest)
                more = [one for one in self._manifests(candidate.referrer.descriptor) if one not in met]
                met.update(more)
                pending.extend(more)
        return tuple(found[digest] for digest in sorted(found, key=str))

    def _candidates(self, root: Descriptor) -> Iterator[tuple[Digest, _Candidate]]:
        repository, tag = layout.place_of(root)
        bare = replace(root, annotations=tuple(pair for pair in root.annotations if pair[0] not in layout.NAMES))
        if tag is not None and (subject := _cosign_subject(tag)) is not None:
            yield subject, _Candidate(referrer=Referrer(bare, tag), root=root, repository=repository)
        elif tag is not None and is_listing(tag):
            for listed in self._children(bare):
                yield from self._listed(listed, root, repository)
        elif tag is None and bare.is_manifest:
            yield from self._listed(bare, root, None)

    def _listed(self, listed: Descriptor, root: Descriptor, repository: str | None) -> Iterator[tuple[Digest, _Candidate]]:
        if not listed.is_manifest:
            return
        raw = self._store.manifest(listed)
        subject = manifest.subject(raw, listed.media_type, at=str(listed))
        if subject is not None:
            described = entry(raw, listed, at=str(listed))
            yield subject.digest, _Candidate(referrer=Referrer(described), root=root, repository=repository)

    def _manifests(self, root: Descriptor) -> list[Digest]:
        present = completeness.check(self._store, root, children=self._children).present
        return [one.digest for one in present if one.is_manifest]

    def _is_whole(self, candidate: _Candidate, name: str) -> bool:
        descriptor = candidate.referrer.descriptor
        try:
            completeness.require(self._store, descriptor, children=self._children, name=str(descriptor))
        except DistError as exc:
            _log.warning("%s: a referrer is left out: %s", name, exc)
            return False
        return True


def _cosign_subject(tag: str) -> Digest | None:
    match = _COSIGN_TAG.fullmatch(tag)
    try:
        subject = Digest.parse(f"{match[1]}:{match[2]}") if match else None
    except (InvalidInput, Unsupported):
        return None
    return subject if subject is not None and tag in cosign_tags(subject) else None


def merged(known: Sequence[Referrer], found: Sequence[Referrer]) -> tuple[Referrer, ...]:
    """Both, each digest once, sorted by digest; `found` wins."""
    by_digest = {one.descriptor.digest: one for one in (*known, *found)}
    return tuple(by_digest[digest] for digest in sorted(by_digest, key=str))
