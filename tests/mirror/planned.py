"""Helpers for tests of planning without Prefect: entries, and queries that the test answers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefect_dist.mirror.config import parse_mirror
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.plan import Plan, PlannedImage
from prefect_dist.mirror.yamlfile import Document
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import DistError, NotFound
from prefect_dist.transfer.pool import Failed, Ok, Unexpected
from prefect_dist.transfer.survey import ImageInfo, ImageQuery, QueryResult
from prefect_dist.transfer.units import Answers
from prefect_dist.transfer.walk_state import RegistryQuery


def entries(*sync: dict[str, Any]) -> Sequence[Entry]:
    """Return the entries of a section `sync`."""
    return parse_mirror(Document(path="mirror.yaml", data={"sync": list(sync)}, lines={}), has_lock=False).entries


def manifest(name: str) -> Descriptor:
    """Return the descriptor of a manifest. Equal names give equal descriptors."""
    return Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=Digest.of(name.encode()), size=9)


def found(query: ImageQuery) -> QueryResult:
    """Return the result for an image that exists at its source and at no target."""
    root = manifest(str(query.source))
    return QueryResult(
        query=query,
        image=ImageInfo(root=root, target_root=root, content=(root,), sent=(root,)),
        standing=(None,) * len(query.targets),
    )


class Queries:
    """Keeps queries until the test answers them."""

    def __init__(self) -> None:
        self.open: list[RegistryQuery] = []

    def query(self, queries: Iterable[RegistryQuery], /) -> None:
        """Keep queries."""
        self.open += queries

    def answer(self, host: str, reply: Callable[[Any], object]) -> None:
        """Answer the open queries about a registry, and the queries that follow from the answers."""
        while mine := [one for one in self.open if one.lane == host]:
            self.open.remove(mine[0])
            result = reply(mine[0].unit.arguments[0])
            if isinstance(result, DistError):
                mine[0].take(Failed(result))
            elif isinstance(result, Exception):
                mine[0].take(Failed(Unexpected.of(result)))
            else:
                mine[0].take(Ok(result))


class Plans:
    """Keeps the planned images and the plan."""

    def __init__(self) -> None:
        self.images: list[PlannedImage] = []
        self.plan: Plan | None = None

    def take_images(self, images: Sequence[PlannedImage], _origins: Mapping[PlannedImage, Answers[QueryResult]], /) -> None:
        """Keep the images."""
        self.images += images

    def take_plan(self, plan: Plan, /) -> None:
        """Keep the plan."""
        self.plan = plan

    @property
    def changes(self) -> dict[str, str]:
        """Planned change at each target."""
        return {str(action.target): action.change for image in self.images for action in image.actions}


def surveyed(queries: Sequence[ImageQuery]) -> Answers[QueryResult]:
    """Return the answer that the images exist at their source and at no target."""
    return Answers(tuple(map(found, queries)))


def missing(queries: Sequence[ImageQuery]) -> NotFound:
    """Return the answer that the images do not exist."""
    return NotFound(f"{len(queries)} images are not there")
