"""Events: the progress of a run as a stream of values, each given to the run's `notify`.

Listeners match on the type of an event and ignore the events that they do not need. Events of one object come in order. Events
of several objects come from several threads at once, as the docstring of each class says: "the run's thread" is the thread that
iterates over the outcomes of units, and "threads of units" are those in which units of work run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import DistError
from prefect_dist.transfer.image_report import ImageEnd

if TYPE_CHECKING:
    from prefect_dist.transfer.content import Receipt

UnresolvedKind = Literal["image", "list"]


@dataclass(frozen=True, slots=True)
class Note:
    """The run, or the command that started it, waits for something or has it now.

    Emitted by the run's thread and by the main thread of the command, there also by a signal handler.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Planned:
    """Planning has compared `count` of `total` images with their targets. Emitted by the run's thread."""

    count: int
    total: int


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
    """The run has to transfer some content, or to see that it exists. Emitted by the run's thread."""

    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class ContentAdvanced:
    """`offset` bytes of some content are there; `gained` of them were just transferred. Emitted by threads of units."""

    descriptor: Descriptor
    offset: int
    gained: int


@dataclass(frozen=True, slots=True)
class ContentFinished:
    """Some content is where the run wants it. Emitted by the run's thread."""

    descriptor: Descriptor
    receipt: "Receipt"


@dataclass(frozen=True, slots=True)
class ContentFailed:
    """Some content, or the list of its referrers, could not be transferred. Emitted by the run's thread."""

    descriptor: Descriptor
    error: DistError


@dataclass(frozen=True, slots=True)
class CorruptContent:
    """Some content does not match its digest. Another attempt may follow.

    `place` is the name of the repository that the content came from, or the URL of the store that had it. Emitted by threads of
    units, and by the run's thread for a store.
    """

    digest: Digest
    kind: Literal["repository", "store"]
    place: str
    message: str


@dataclass(frozen=True, slots=True)
class StepDone:
    """A further step for an image that is whole succeeded, such as its publication. Emitted by the run's thread."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A step that concerns neither one descriptor nor one image on its way failed. Emitted by the run's thread."""

    message: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """A server sent a Retry-After: requests to it pause for some seconds. Emitted by any thread that sends requests."""

    server: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ImageEnded:
    """Nothing of an image is in flight any more. Emitted by the run's thread."""

    report: ImageEnd


@dataclass(frozen=True, slots=True)
class Recording:
    """Nothing of any image is in flight any more: the run removes tags and records its results. Emitted by the run's thread."""


Event = (
    Note
    | Planned
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
    """Do nothing: the listener of a run that no one follows."""


def combine_listeners(*listeners: Notify) -> Notify:
    """Return a listener that passes each event to all of these, in their order."""

    def notify_all(event: Event) -> None:
        for notify in listeners:
            notify(event)

    return notify_all
