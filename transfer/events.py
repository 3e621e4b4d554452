"""Events: the progress of a run as a stream of values for the run's `notify`.

Listeners match on the type of an event and ignore other events. Events of one object come in order. Events of several objects
come from several threads at once. "The run's thread" iterates over the outcomes of units, and "threads of units" run units of
work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.image_report import ImageReport

if TYPE_CHECKING:
    from prefect_dist.transfer.content import Receipt

UnresolvedKind = Literal["image", "list"]


@dataclass(frozen=True, slots=True)
class Note:
    """The run, or the command that started the run, waits for something or has it now.

    Emitted by the run's thread and by the main thread of the command, also by a signal handler of the command.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Planned:
    """Planning has compared `count` of `total` images with their targets. Emitted by the run's thread."""

    count: int
    total: int


@dataclass(frozen=True, slots=True)
class ShardsAdvanced:
    """The ended shards, which other processes carried out, had `count` of `total` images. Emitted by the run's thread."""

    count: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobsHashed:
    """The run has hashed `count` of `total` blobs of the store, with `size` of `total_size` bytes.

    `failed` blobs could not be read. Emitted by the run's thread, for the first time before any blob is hashed.
    """

    count: int
    total: int
    failed: int
    size: int
    total_size: int


@dataclass(frozen=True, slots=True)
class Unresolved:
    """An image, or the list of a repository or registry, could not be resolved, and no attempt is left.

    Emitted by threads of units.
    """

    name: str
    kind: UnresolvedKind


@dataclass(frozen=True, slots=True)
class ImageResolving:
    """A unit resolves the reference of an image. Emitted by the run's thread."""

    name: str


@dataclass(frozen=True, slots=True)
class ImageResolved:
    """The reference of an image resolves to `root`. Emitted by the run's thread."""

    name: str
    root: Descriptor


@dataclass(frozen=True, slots=True)
class ContentFound:
    """The run has to transfer some content, or to check its existence. Emitted by the run's thread."""

    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class ContentAdvanced:
    """`offset` bytes of some content have arrived, `gained` of them just now. Emitted by threads of units."""

    descriptor: Descriptor
    offset: int
    gained: int


@dataclass(frozen=True, slots=True)
class ContentFinished:
    """Some content is in its place. Emitted by the run's thread."""

    descriptor: Descriptor
    receipt: "Receipt"


@dataclass(frozen=True, slots=True)
class ContentFailed:
    """The transfer of some content, or of the list of referrers, failed. Emitted by the run's thread."""

    descriptor: Descriptor
    error: DistError


@dataclass(frozen=True, slots=True)
class CorruptContent:
    """Some content does not match the digest. Another attempt may follow.

    `place` is the name of a repository, or the URL of the store. Emitted by threads of units, and by the run's thread for a
    store.
    """

    digest: Digest
    kind: Literal["repository", "store"]
    place: str
    error: DistError


@dataclass(frozen=True, slots=True)
class StepDone:
    """A further step for a whole image succeeded, such as the publication. Emitted by the run's thread."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A step for the run as a whole failed, such as a record. Emitted by the run's thread.

    `step` names the step if the error does not.
    """

    error: DistError
    step: str | None = None


@dataclass(frozen=True, slots=True)
class Throttled:
    """A server sent a Retry-After: requests to the server pause for some seconds. Emitted by any thread that sends requests."""

    server: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ImageEnded:
    """An image ended: no unit of the image is in flight. Emitted by the run's thread."""

    report: ImageReport


@dataclass(frozen=True, slots=True)
class Recording:
    """All images ended: the run removes tags and records the results. Emitted by the run's thread."""


Event = (
    Note
    | Planned
    | ShardsAdvanced
    | BlobsHashed
    | Unresolved
    | ImageResolving
    | ImageResolved
    | ContentFound
    | ContentAdvanced
    | ContentFinished
    | ContentFailed
    | CorruptContent
    | StepDone
    | StepFailed
    | Throttled
    | ImageEnded
    | Recording
)
Notify = Callable[[Event], None]
"""A listener: called with each event, from several threads at once. An exception that it raises ends the unit of work."""


def ignore_event(_event: Event) -> None:
    """Do nothing: the listener of a run without a listener."""


def combine_listeners(*listeners: Notify) -> Notify:
    """Return a listener that passes each event to several listeners, in their order."""

    def notify_all(event: Event) -> None:
        for notify in listeners:
            notify(event)

    return notify_all
