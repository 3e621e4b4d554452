"""Manifests that a run writes before the tag of their image, for targets that record an image as a whole."""

import threading
from collections import deque
from collections.abc import Callable, Iterable

from prefect_dist.ocispec import Descriptor, Digest, manifest
from prefect_dist.ocispec.referrers import Referrer, cosign_subject, make_entry


class UntaggedManifests:
    """The manifests without a tag, and the referrers that a run has written to one place. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: set[Digest] = set()
        self._referrers: dict[Digest, dict[Digest, Referrer]] = {}

    def add(self, raw: bytes, descriptor: Descriptor) -> Digest | None:
        """Add a manifest that has no tag yet. Return its subject, None without a subject."""
        about = manifest.subject(raw, descriptor.media_type, at=str(descriptor))
        with self._guard:
            self._waiting.add(descriptor.digest)
        if about is None:
            return None
        self._keep_referrer(about.digest, Referrer(make_entry(raw, descriptor, at=str(descriptor))))
        return about.digest

    def add_tagged(self, descriptor: Descriptor, tag: str) -> bool:
        """Add the manifest of a tag. Return True if the tag is a digest tag for an image that waits for its own tag.

        Any other digest tag is that of an image, but is also written with an image of the run to which the tag refers.
        """
        subject = cosign_subject(tag)
        if subject is None:
            return False
        self._keep_referrer(subject, Referrer(descriptor, tag))
        with self._guard:
            return subject in self._waiting

    def add_referrer(self, subject: Digest, referrer: Referrer) -> bool:
        """Add a referrer of an image that waits for its tag. Return False for any other subject."""
        with self._guard:
            if subject not in self._waiting:
                return False
        self._keep_referrer(subject, referrer)
        return True

    def find_referrers(
        self, tree: Iterable[Descriptor], walk: Callable[[Descriptor], Iterable[Descriptor]]
    ) -> list[tuple[Digest, Referrer]]:
        """Return the direct and indirect referrers of the manifests in a tree, each with its subject.

        `walk` returns the tree below a referrer.
        """
        found = dict[Digest, tuple[Digest, Referrer]]()
        pending = deque(one.digest for one in tree if one.is_manifest)
        while pending:
            subject = pending.popleft()
            with self._guard:
                about = list(self._referrers.get(subject, {}).values())
            for referrer in about:
                if referrer.descriptor.digest not in found:
                    found[referrer.descriptor.digest] = subject, referrer
                    pending.extend(one.digest for one in walk(referrer.descriptor) if one.is_manifest)
        return list(found.values())

    def discard(self, tree: Iterable[Descriptor]) -> None:
        """Note that a tag leads to these manifests now. Their referrers stay known for further tags of the same image."""
        with self._guard:
            self._waiting -= {one.digest for one in tree}

    def _keep_referrer(self, subject: Digest, referrer: Referrer) -> None:
        """Keep a referrer. A referrer with a tag replaces the same referrer without a tag."""
        with self._guard:
            known = self._referrers.setdefault(subject, {})
            if referrer.tag is not None or referrer.descriptor.digest not in known:
                known[referrer.descriptor.digest] = referrer
