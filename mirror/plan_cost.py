"""The cost of a plan: the content to transfer, the requests, and the pulls that count against a quota."""

from dataclasses import dataclass
from functools import cached_property

from prefect_dist.mirror.plan import Plan
from prefect_dist.ocispec import Descriptor, Digest


@dataclass(frozen=True)
class PlanCost:
    """The cost of a plan, as far as the survey of the images shows."""

    plan: Plan

    @cached_property
    def to_fetch(self) -> dict[Digest, Descriptor]:
        """Return the distinct content to fetch."""
        content = (descriptor for image in self.plan.due for descriptor in image.content)
        return {descriptor.digest: descriptor for descriptor in content if descriptor.digest in self.plan.missing}

    @cached_property
    def to_send(self) -> dict[tuple[str, Digest], Descriptor]:
        """Return the distinct content per target registry. The registry may already have some of the content."""
        return {
            (action.target.host, descriptor.digest): descriptor
            for image in self.plan.due
            for action in image.due
            for descriptor in image.sent
        }

    @property
    def fetched_bytes(self) -> int:
        """Return the number of bytes to fetch."""
        return sum(descriptor.size for descriptor in self.to_fetch.values())

    @property
    def sent_bytes(self) -> int:
        """Return the largest possible number of bytes to push."""
        return sum(descriptor.size for descriptor in self.to_send.values())

    @cached_property
    def requests(self) -> int:
        """Return the approximate number of requests.

        The run sends one request for each fetched descriptor and each pushed manifest, one before each tag is set, and three
        for each pushed blob and each tag to remove. A blob that the target has or mounts takes fewer.
        """
        due = self.plan.due
        published = sum(descriptor.is_manifest for image in due for _ in image.due for descriptor in image.sent)
        published += sum(len(image.due) for image in due)
        blobs = {(action.target, d.digest) for image in due for action in image.due for d in image.sent if not d.is_manifest}
        sent = sum(not descriptor.is_manifest for descriptor in self.to_send.values())
        return len(self.to_fetch) + published + len(blobs) + 2 * sent + 3 * len(self.plan.to_prune)

    def pulls_from(self, host: str) -> int | None:
        """Return the number of pulls from a registry, as Docker Hub counts: one per image, and per platform of an index.

        None unless the run is dry: another run has pulled the manifests before the plan is complete.
        """
        if not self.plan.is_dry:
            return None
        pulled = ((image, one) for image in self.plan.due for one in image.content if one.is_manifest and one.kind != "index")
        sources = {one.digest: image.item.source.host for image, one in pulled}
        return sum(sources.get(digest) == host for digest in self.to_fetch)
