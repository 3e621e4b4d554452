"""Manifests that are related to a subject, such as signatures and bills of materials. No Prefect here."""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

from ocispec import Descriptor, Digest, manifest
from ocispec.errors import Corrupt, InvalidInput, NotFound, Unsupported
from ocispec.referrers import MAX_REFERRERS, Referrer
from remotes import Source

_log = logging.getLogger(__name__)
# A list with more entries that are not about its subject is forged as a whole; each costs a request.
_MAX_UNRELATED = 100
# Reads the manifest of a descriptor, verified.
Read = Callable[[Descriptor], bytes]
# How related manifests are found: in the registry's list of referrers (or the fallback tag), or under cosign's digest tags.
Related = Literal["listed", "tagged"]
EVERYTHING: frozenset[Related] = frozenset({"listed", "tagged"})


def related_to(
    subject: Descriptor,
    source: Source,
    related: frozenset[Related],
    *,
    read: Read | None,
    verified: frozenset[Digest] = frozenset(),
) -> tuple[Referrer, ...]:
    """Return the manifests in a repository that refer to `subject`: listed ones, those under digest tags, or both.

    A list can be forged: anyone who may push to the repository can write its fallback index. A listed manifest counts only if
    its own `subject` is the one asked for; all others are ignored with a warning. `read` is None where that does not matter,
    and `verified` has the digests of manifests that need not be read again. Cosign's manifests have no subject: there the name
    of the tag is the only link.

    Raises:
        Unsupported: a list with more than a hundred manifests that do not refer to the subject.
        DistError: an error of the source.
    """
    tagged = [Referrer(one, tag) for tag, one in source.signatures(subject)] if "tagged" in related else []
    known = {referrer.descriptor.digest for referrer in tagged}
    listed = [one for one in source.referrers(subject) if one.digest not in known] if "listed" in related else []
    ignored = set[Digest]()
    if read is not None:
        ignored = _unrelated([one for one in listed if one.digest not in verified], subject, read)
    return (*(Referrer(one) for one in listed if one.digest not in ignored), *tagged)


def _unrelated(listed: Iterable[Descriptor], subject: Descriptor, read: Read) -> set[Digest]:
    ignored = set[Digest]()
    for one in listed:
        if not _refers_to(one, subject, read):
            ignored.add(one.digest)
            if len(ignored) > _MAX_UNRELATED:
                raise Unsupported(f"{subject}: more than {_MAX_UNRELATED} manifests are listed as its referrers and are not")
    return ignored


def _refers_to(listed: Descriptor, subject: Descriptor, read: Read) -> bool:
    try:
        found = manifest.subject(read(listed), listed.media_type, at=str(listed)) if listed.is_manifest else None
    except (Corrupt, InvalidInput, NotFound, Unsupported) as exc:
        reason = str(exc)
    else:
        if found is not None and found.digest == subject.digest:
            return True
        reason = f"expected the subject {subject.digest}, got {found.digest if found else 'none'}"
    _log.warning("%s is listed as a referrer of %s and ignored: %s", listed, subject, reason)
    return False


def find_all_related(
    subjects: Iterable[Descriptor],
    find: Callable[[Descriptor], Iterable[Referrer]],
    manifests_of: Callable[[Descriptor], Iterable[Descriptor]],
    *,
    at: str,
) -> dict[Digest, Referrer]:
    """Return the referrers of `subjects`, the referrers of those, and so on, by digest.

    `find` returns the referrers of one subject, and `manifests_of` the manifests in the tree of a referrer. Each manifest is
    passed to `find` once, so circles end. `at` names the image in errors.

    Raises:
        Unsupported: more than MAX_REFERRERS.
        DistError: an error of `find` or `manifests_of`.
    """
    found: dict[Digest, Referrer] = {}
    pending, asked = deque(subjects), set[Digest]()
    while pending:
        subject = pending.popleft()
        if subject.digest in asked:
            continue
        asked.add(subject.digest)
        for referrer in find(subject):
            if referrer.descriptor.digest in found:
                continue
            if len(found) == MAX_REFERRERS:
                raise Unsupported(f"{at}: expected at most {MAX_REFERRERS} referrers, there are more")
            found[referrer.descriptor.digest] = referrer
            pending.extend(manifests_of(referrer.descriptor))
    return found
