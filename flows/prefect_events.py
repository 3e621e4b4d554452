"""Prefect events, for automations and for readers of the feed; docs/reference/events.md lists them.

Prefect queues events and sends them from a thread of its own. It adds the current flow run, its flow and its deployment to
each of them. Error texts contain no secrets, as everywhere.
"""

from collections.abc import Sequence
from typing import Any, Literal

from prefect.events import emit_event

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.events import CorruptContent, Event

Reason = Literal["added", "changed", "referrers", "repaired"]
_NAMESPACE = "prefect-dist"
_FOUND = {"repository": "on its way", "store": "in the store"}


def emit_mirrored(source: Reference, target: Reference, *, reason: Reason, digest: Digest, previous: Digest | None) -> None:
    """Emit that an image is at its target: `image.changed` if that resolved to another one before, else `image.mirrored`."""
    payload = {"reason": reason, "digest": str(digest), "previous": previous and str(previous)}
    _emit_for_image("image.changed" if reason == "changed" else "image.mirrored", source, target, payload)


def emit_failure(source: Reference, target: Reference, *, digest: Digest | None, errors: Sequence[DistError]) -> None:
    """Emit that an image could not be mirrored to its target, or that it could not be compared with it."""
    _emit_for_image("image.failed", source, target, {"digest": digest and str(digest), "error": "; ".join(map(str, errors))})


def emit_corruption(event: Event) -> None:
    """Emit a Prefect event for corrupt content; ignore all other events. A listener.

    Prefect adds the flow run of the thread that calls this. For an event of a unit, that is the flow run of its task.
    """
    if not isinstance(event, CorruptContent):
        return
    emit_event(
        "content.corrupt",
        resource=_resource("content", str(event.digest)),
        related=[_resource(event.kind, event.place, role="place")],
        payload={
            "digest": str(event.digest),
            "found": _FOUND[event.kind],
            "place": event.place,
            "error": event.message,
        },
    )


def _emit_for_image(event: str, source: Reference, target: Reference, payload: dict[str, Any]) -> None:
    emit_event(
        event,
        resource=_resource("image", str(target)),
        related=[
            _resource("image", str(source), role="source"),
            _resource("registry", source.host, role="source-registry"),
            _resource("registry", target.host, role="target-registry"),
        ],
        payload={"source": str(source), "target": str(target), **payload},
    )


def _resource(kind: str, name: str, *, role: str | None = None) -> dict[str, str]:
    """Return a resource, whose id stays the same as long as its name does."""
    resource = {"prefect.resource.id": f"{_NAMESPACE}.{kind}.{name}", "prefect.resource.name": name}
    return resource if role is None else resource | {"prefect.resource.role": role}
