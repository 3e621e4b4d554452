"""The cost of a plan: the content to transfer, the requests, and the pulls that count against a quota."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from prefect_dist.ocispec import Descriptor, Digest

if TYPE_CHECKING:
    from prefect_dist.mirror.plan import PlannedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """The cost of the images of a plan, as far as the survey of the images shows. Equal content counts once.

    Attributes:
        fetched: the number of descriptors to fetch.
        sent: the largest possible number of descriptors to push, summed over the target registries.
        requests: the approximate number of requests.
        pulls: the number of pulls from each source registry, as Docker Hub counts: one per image, and per platform of an index.
        stored: the number of blobs that the store has.
    """

    fetched: int = 0
    fetched_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    requests: int = 0
    pulls: Mapping[str, int] = field(default_factory=dict)
    stored: int = 0
    stored_bytes: int = 0

    @classmethod
    def of(cls, images: "Sequence[PlannedImage]", missing: Collection[Digest]) -> Self:
        """Return the cost of images that are needed. `missing` are the digests that the store lacks.

        The run sends one request for each fetched descriptor and each pushed manifest, one before each tag is set, and three
        for each pushed blob. A blob that the target has or mounts takes fewer.
        """
        content = _collect_distinct(one for image in images for one in image.content)
        fetched = [one for one in content if one.digest in missing]
        stored = [one.size for one in content if one.digest not in missing and not one.is_manifest]
        sent = _collect_sent(images)
        publications = sum(len(image.due) * (1 + _count_uploads(image)) for image in images)
        return cls(
            fetched=len(fetched),
            fetched_bytes=sum(one.size for one in fetched),
            sent=len(sent),
            sent_bytes=sum(one.size for one in sent),
            requests=len(fetched) + publications + 2 * sum(not one.is_manifest for one in sent),
            pulls=_count_pulls(images, missing),
            stored=len(stored),
            stored_bytes=sum(stored),
        )


def _collect_distinct(descriptors: Iterable[Descriptor]) -> Collection[Descriptor]:
    """Return one descriptor per digest."""
    return {one.digest: one for one in descriptors}.values()


def _collect_sent(images: "Iterable[PlannedImage]") -> list[Descriptor]:
    """Return the distinct content for each target registry. The registry may already have some of the content."""
    by_host = defaultdict[str, dict[Digest, Descriptor]](dict)
    for image in images:
        for host in {action.target.host for action in image.due}:
            by_host[host].update((one.digest, one) for one in image.sent)
    return [one for content in by_host.values() for one in content.values()]


def _count_uploads(image: "PlannedImage") -> int:
    """Return the number of manifests and of distinct blobs of an image at a target."""
    return sum(one.is_manifest for one in image.sent) + len({one.digest for one in image.sent if not one.is_manifest})


def _count_pulls(images: "Iterable[PlannedImage]", missing: Collection[Digest]) -> Mapping[str, int]:
    """Return the number of manifests of images to fetch, by source registry."""
    pulled = ((image, one) for image in images for one in image.content if one.is_manifest and one.kind != "index")
    sources = {one.digest: image.item.source.host for image, one in pulled if one.digest in missing}
    return Counter(sources.values())
