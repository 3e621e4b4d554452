"""Manifests that are related to a subject, such as signatures and bills of materials. No Prefect here."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

from ocispec import Descriptor, Digest
from ocispec.errors import Unsupported
from ocispec.referrers import MAX_REFERRERS, Referrer
from remotes import Source

# How related manifests are found: in the registry's list of referrers (or the fallback tag), or under cosign's digest tags.
Related = Literal["listed", "tagged"]
EVERYTHING: frozenset[Related] = frozenset({"listed", "tagged"})


def related_to(subject: Descriptor, source: Source, related: frozenset[Related]) -> tuple[Referrer, ...]:
    """Return the manifests in a repository that refer to `subject`: listed ones, those under digest tags, or both.

    Raises:
        DistError: an error of the source.
    """
    tagged = [Referrer(one, tag) for tag, one in source.signatures(subject)] if "tagged" in related else []
    known = {referrer.descriptor.digest for referrer in tagged}
    listed = [Referrer(one) for one in source.referrers(subject)] if "listed" in related else []
    return (*(referrer for referrer in listed if referrer.descriptor.digest not in known), *tagged)


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
