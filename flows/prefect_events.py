"""Prefect events for automations and for the event feed (docs/reference/events.md).

A thread of Prefect sends the events. Prefect adds the current flow run, flow and deployment to each event. Error texts contain
no secrets.
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
    """Emit `image.changed` if the target resolved to a different image before, otherwise `image.mirrored`."""
    payload = {"reason": reason, "digest": str(digest), "previous": previous and str(previous)}
    _emit_for_image("image.changed" if reason == "changed" else "image.mirrored", source, target, payload)


def emit_failure(source: Reference, target: Reference, *, digest: Digest | None, errors: Sequence[DistError]) -> None:
    """Emit `image.failed`: the run could not mirror the image, or could not compare the image with the target."""
    _emit_for_image("image.failed", source, target, {"digest": digest and str(digest), "error": "; ".join(map(str, errors))})


def emit_corruption(event: Event) -> None:
    """Emit a Prefect event for corrupt content; ignore other events. The function is a listener.

    Prefect adds the flow run of the calling thread. For an event of a unit, the thread belongs to the flow run of the task.
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
            "error": str(event.error),
        },
    )


def _emit_for_image(event: str, source: Reference, target: Reference, payload: dict[str, Any]) -> None:
    emit_event(
        event,
        resource=_resource("image", str(target)),
        related=[_resource("image", str(source), role="source")],
        payload={"source": str(source), "target": str(target), **payload},
    )


def _resource(kind: str, name: str, *, role: str | None = None) -> dict[str, str]:
    """Return a resource. The id depends only on the name."""
    resource = {"prefect.resource.id": f"{_NAMESPACE}.{kind}.{name}", "prefect.resource.name": name}
    return resource if role is None else resource | {"prefect.resource.role": role}
