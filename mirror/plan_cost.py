"""The cost of a plan: the content to transfer, the requests, and the pulls that count against a quota."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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


class CostCounter:
    """Adds up the cost of images. A plan may have millions of descriptors, so the counter keeps only a hash of each digest."""

    def __init__(self) -> None:
        self.cost = PlanCost()
        self._known = set[int]()
        self._sent = defaultdict[str, set[int]](set)

    def select_new(self, images: "Iterable[PlannedImage]") -> list[Descriptor]:
        """Return the distinct content of needed images that the counter does not know."""
        return _select_unknown((one for image in images if image.is_needed for one in image.content), self._known)

    def add(self, images: "Iterable[PlannedImage]", missing: Collection[Digest]) -> None:
        """Add the needed images. `missing` are the digests of new content that the store lacks.

        The run sends one request for each fetched descriptor and each pushed manifest, one before each tag is set, and three
        for each pushed blob. A blob that the target has or mounts takes fewer.
        """
        needed = [image for image in images if image.is_needed]
        new = self.select_new(needed)
        self._known.update(hash(one.digest) for one in new)
        fetched = [one for one in new if one.digest in missing]
        stored = [one for one in new if one.digest not in missing and not one.is_manifest]
        sent, before = self._take_sent(needed), self.cost
        publications = sum(len(image.due) * (1 + _count_uploads(image)) for image in needed)
        requests = len(fetched) + publications + 2 * sum(not one.is_manifest for one in sent)
        self.cost = PlanCost(
            fetched=before.fetched + len(fetched),
            fetched_bytes=before.fetched_bytes + _sum_sizes(fetched),
            sent=before.sent + len(sent),
            sent_bytes=before.sent_bytes + _sum_sizes(sent),
            requests=before.requests + requests,
            pulls=Counter(before.pulls) + _count_pulls(needed, missing),
            stored=before.stored + len(stored),
            stored_bytes=before.stored_bytes + _sum_sizes(stored),
        )

    def _take_sent(self, images: "Sequence[PlannedImage]") -> list[Descriptor]:
        """Return the content that is new for a target registry. The registry may already have some of the content."""
        by_host = defaultdict[str, list[Descriptor]](list)
        for image in images:
            for host in {action.target.host for action in image.due}:
                by_host[host] += image.sent
        found = {host: _select_unknown(content, self._sent[host]) for host, content in by_host.items()}
        for host, content in found.items():
            self._sent[host].update(hash(one.digest) for one in content)
        return [one for content in found.values() for one in content]


def _select_unknown(content: Iterable[Descriptor], known: Collection[int]) -> list[Descriptor]:
    return [one for digest, one in {one.digest: one for one in content}.items() if hash(digest) not in known]


def _sum_sizes(descriptors: Iterable[Descriptor]) -> int:
    return sum(one.size for one in descriptors)


def _count_uploads(image: "PlannedImage") -> int:
    """Return the number of manifests and of distinct blobs of an image at a target."""
    return sum(one.is_manifest for one in image.sent) + len({one.digest for one in image.sent if not one.is_manifest})


def _count_pulls(images: "Iterable[PlannedImage]", missing: Collection[Digest]) -> Counter[str]:
    """Return the number of missing manifests of images, by source registry."""
    pulled = ((image, one) for image in images for one in image.content if one.is_manifest and one.kind != "index")
    sources = {one.digest: image.item.source.host for image, one in pulled if one.digest in missing}
    return Counter(sources.values())
