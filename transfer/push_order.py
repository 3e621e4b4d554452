"""The push order of a tree: a manifest after its children, a referrer after the subject, the tag of the image last."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from graphlib import TopologicalSorter

from prefect_dist.ocispec import Descriptor, manifest
from prefect_dist.ocispec.children import Children
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.storage import ContentStore


def push_order(
    store: ContentStore,
    content: Iterable[Descriptor],
    children: Children,
    *,
    root: Descriptor,
    tag: str | None,
    referrers: Sequence[Referrer] = (),
) -> Iterator[tuple[Descriptor, str | None]]:
    """Yield each descriptor of `content` with its tag. `content` contains `root` and `referrers`.

    A descriptor with several tags is yielded once for each tag. If there are referrers, they follow `root`, and `root` is
    yielded once more at the end, with `tag`. Before that come the digest tags of referrers without referrers of their own.

    Raises:
        DistError: a manifest cannot be read.
    """
    known = {descriptor.key: descriptor for descriptor in content}
    by_digest = {descriptor.digest: key for key, descriptor in known.items()}
    before = {key: {child.key: None for child in children(one) if child.key in known} for key, one in known.items()}
    tags = defaultdict[object, list[str | None]](list)
    for referrer in referrers:
        raw = store.manifest(referrer.descriptor) if referrer.descriptor.is_manifest else b""
        subject = manifest.subject(raw, referrer.descriptor.media_type, at=str(referrer.descriptor))
        if subject is not None and subject.digest in by_digest:
            before[referrer.descriptor.key][by_digest[subject.digest]] = None
        if referrer.tag is not None:
            tags[referrer.descriptor.key].append(referrer.tag)
    if not referrers:
        tags[root.key].append(tag)
    needed = {key for keys in before.values() for key in keys}
    order = list(TopologicalSorter(before).static_order())
    # Digest tags come last, because the name of a tag is the only link from a manifest of cosign to the image.
    for key in sorted(order, key=lambda key: bool(tags[key]) and key not in needed):
        for each in tags[key] or (None,):
            yield known[key], each
    if referrers and tag is not None:
        yield root, tag
