"""What is told to Prefect as events, for automations and for whoever reads its feed; docs/events.md has all of them.

Prefect queues events and sends them from a thread of its own, and adds the flow run, its flow and its deployment to each of
them. What stays the same is no event. Texts of errors have no secrets in them, as everywhere.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from prefect.events import emit_event

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import Corrupt

Reason = Literal["added", "changed", "referrers", "repaired"]
_OURS = "prefect-dist"


def image_brought(source: Reference, target: Reference, *, reason: Reason, digest: Digest, previous: Digest | None) -> None:
    """Tell that an image is at its target now: `image.changed` where that stood for another one, else `image.mirrored`."""
    told = {"reason": reason, "digest": str(digest), "previous": previous and str(previous)}
    _image("image.changed" if reason == "changed" else "image.mirrored", source, target, told)


def image_failed(source: Reference, target: Reference, *, digest: Digest | None, error: str) -> None:
    """Tell that an image could not be brought to its target, or that it cannot be told whether it has to be."""
    _image("image.failed", source, target, {"digest": digest and str(digest), "error": error})


def found_corrupt(digests: Iterable[Digest], store: str) -> None:
    """Tell of content in a store, given by its URL, that is not what its digest says and is in quarantine now."""
    for digest in digests:
        error = f"blob {digest}: corrupt in {store}, now in quarantine"
        _corrupt(digest, _resource("store", store), {"found": "in the store", "place": store, "error": error})


@contextmanager
def telling_of_corruption(descriptor: Descriptor, source: Reference) -> Iterator[None]:
    """Tell of content that comes from `source` in this block and is not what its digest says; the error goes on."""
    try:
        yield
    except Corrupt as exc:
        told = {"found": "on its way", "place": source.locator, "error": str(exc)}
        _corrupt(descriptor.digest, _resource("repository", source.locator), told)
        raise


def _image(event: str, source: Reference, target: Reference, told: dict[str, Any]) -> None:
    emit_event(
        event,
        resource=_resource("image", str(target)),
        related=[
            _resource("image", str(source), role="source"),
            _resource("registry", source.host, role="source-registry"),
            _resource("registry", target.host, role="target-registry"),
        ],
        payload={"source": str(source), "target": str(target), **told},
    )


def _corrupt(digest: Digest, place: dict[str, str], told: dict[str, Any]) -> None:
    emit_event(
        "content.corrupt",
        resource=_resource("content", str(digest)),
        related=[place | {"prefect.resource.role": "place"}],
        payload={"digest": str(digest), **told},
    )


def _resource(kind: str, name: str, *, role: str | None = None) -> dict[str, str]:
    """A resource, whose id stays the same as long as its name does."""
    resource = {"prefect.resource.id": f"{_OURS}.{kind}.{name}", "prefect.resource.name": name}
    return resource if role is None else resource | {"prefect.resource.role": role}
