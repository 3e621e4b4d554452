"""A push: the walk over one image of the store. The walk uploads the blobs, and then publishes the image at the target.

The module also has the last step of pushes and mirrors: `confirm_referrers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.children import children_reader, without_foreign
from prefect_dist.ocispec.errors import DistError, NotFound
from prefect_dist.storage import Name, presence
from prefect_dist.storage.presence import Presence
from prefect_dist.transfer import units
from prefect_dist.transfer.cancellation import Stopped
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.delivery import Publication, Receipts, add_receipt, failed_receipts
from prefect_dist.transfer.events import ContentFinished, Event, ImageEnded, ImageResolving, Notify, StepDone
from prefect_dist.transfer.fetching import Fetched
from prefect_dist.transfer.image_report import Failure
from prefect_dist.transfer.pool import Failed, Ok, Pool, Unit
from prefect_dist.transfer.walk import Walk
from prefect_dist.transfer.walk_state import ContentNode, FollowUp, ImageState


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The results of a push for distinct descriptors.

    `waiting` counts the descriptors that were not sent because of a failure or a stop.
    """

    receipts: tuple[tuple[Descriptor, Receipt], ...]
    failures: tuple[Failure, ...]
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """Referrers that a repository does not list, or that the run could not look up, with the error."""

    repository: Reference
    referrers: frozenset[Digest]
    error: DistError


class Push:
    """A push of an image to `target`, with `referrers` also of the image's referrers in the store.

    The push is the policy of its walk, and also the recorder: the store has the image under a name already, so the push records
    no name.
    """

    visits_existing = True

    def __init__(self, pool: Pool, image: Name, target: Reference, notify: Notify, *, referrers: bool) -> None:
        self._pool, self._session, self._image, self._notify = pool, pool.session, image, notify
        along = image.referrers if referrers else ()
        self._wanted = Publication(root=image.descriptor, target=target, referrers=along, surveyed=False)
        self._state = ImageState(target, root=image.descriptor, referrers=dict.fromkeys(along))
        self._publish: FollowUp[units.Answer[units.PublishReceipts]] | None = None
        self._receipts: Receipts = {}

    def run(self) -> Delivered:
        """Push the missing content to the target.

        If the target already resolves to the image, only referrers are pushed: a registry has the content of its manifests.

        Raises:
            NotFound: the store lacks content; nothing was sent.
        """
        own = self._find_content(self._image.descriptor)
        content = own | self._find_content(*(referrer.descriptor for referrer in self._wanted.referrers))
        target = self._wanted.target
        self._notify(ImageResolving(str(target)))
        check = Unit(work=units.check_target, arguments=(self._wanted.root, target), hosts=frozenset({target.host}))
        checked = self._pool.call(check)
        if isinstance(checked, Failed):
            failure = Failure(descriptor=None, error=checked.error)
            return Delivered(receipts=(), failures=(failure,), waiting=len(content))
        self._state.origin = checked.value
        if checked.value.found:
            self._state.met.update(own)
            self._receipts = {key: (one, Receipt("existed")) for key, one in own.items()}
        Walk(self, self, self._pool, self._pass_on).run((self._state,))
        self._take_publication()
        return self._result(content)

    def _find_content(self, *roots: Descriptor) -> dict[object, Descriptor]:
        """Return the content of trees. All platforms are needed: a registry accepts no index without its manifests."""
        found = presence.check(
            self._session.store, *roots, children=without_foreign(children_reader(self._session.store.manifest))
        )
        if not found.is_complete:
            raise NotFound(f"{found.shortage}; fetch the image again for all platforms, then push it", subject=self._image.name)
        return {descriptor.key: descriptor for descriptor in found.present}

    def _pass_on(self, event: Event) -> None:
        """Pass on an event of the walk. Manifests finish with the publication, and the image with the report of the push."""
        if isinstance(event, ContentFinished):
            if event.descriptor.is_manifest:
                return
            add_receipt(self._receipts, event.descriptor, event.receipt)
        if not isinstance(event, ImageEnded | StepDone):
            self._notify(event)

    def _take_publication(self) -> None:
        """Add the receipts of the publication. After a failure the root gets no receipt: the tag is not set."""
        if self._publish is None:
            return
        outcome, root = self._publish.outcome, self._wanted.root
        if isinstance(outcome, Ok):
            receipts = outcome.value.found
        else:
            receipts = tuple(one for one in failed_receipts(self._session, self._wanted).values() if one[0].key != root.key)
        for descriptor, receipt in receipts:
            add_receipt(self._receipts, descriptor, receipt)
            self._notify(ContentFinished(descriptor, receipt))

    def _result(self, content: dict[object, Descriptor]) -> Delivered:
        """Return the result. All units that did not run because of a stop share one failure."""
        failures = [one for one in self._state.failures if not isinstance(one.error, Stopped)]
        failed = {one.descriptor.key for one in failures if one.descriptor is not None}
        waiting = len(content.keys() - self._receipts.keys() - failed)
        if waiting and failures and self._publish is not None:
            waiting -= 1  # the manifest at which the publication ended
        stops = [Failure(descriptor=None, error=one.error) for one in self._state.failures if isinstance(one.error, Stopped)]
        failures += stops[:1]
        if self._session.cancel.reason is None:
            failures += [Failure(descriptor=None, error=one.error) for one in confirm_referrers(self._pool)]
        receipts = tuple(self._receipts.values())
        return Delivered(receipts=receipts, failures=tuple(failures), waiting=waiting)

    def unit_for(self, node: ContentNode, source: Reference) -> Unit[Fetched]:
        """Return the unit that uploads a blob, or reads the children of a manifest."""
        origin = Reference(self._image.source, "")
        return Unit(work=units.upload, arguments=(node.descriptor, source, origin), hosts=frozenset({source.host}))

    def follow_ups(self, image: ImageState) -> Sequence[FollowUp[units.Answer[units.PublishReceipts]]]:
        """Return the publication if the target lacks the image or a referrer, and nothing afterwards."""
        is_at_target = not self._wanted.referrers and self._wanted.root.key in self._receipts
        if self._publish is not None or is_at_target:
            return ()
        hosts, parents = frozenset({image.reference.host}), tuple(image.leaves) or (image.origin,)
        unit = Unit(work=units.publish, arguments=(self._wanted,), hosts=hosts, parents=parents)
        self._publish = FollowUp(image=image, unit=unit, describe=str)
        return (self._publish,)

    def end(self, image: ImageState) -> None:
        """Do nothing."""

    def check_and_name(self, *_: object, **_options: object) -> Presence:
        """Return an empty result, as `pin`."""
        return Presence((), ())

    def pin(self, *_: object, **_options: object) -> Presence:
        """Return an empty result: `run` has checked the content, and the walk visits existing content, too."""
        return Presence((), ())

    def record(self, *_: object, **_options: object) -> None:
        """Record nothing."""


def confirm_referrers(pool: Pool) -> list[Unconfirmed]:
    """Check the fallback tags of the run, and add entries that other clients overwrote. Return the referrers with an error.

    Registries without a referrers API list referrers under fallback tags. A run without fallback tags runs no unit.
    """
    registries, found = pool.session.registries, list[Unconfirmed]()
    for repository, outcome in pool.run(registries.with_fallback_referrers(), _confirmation):
        if isinstance(outcome, Failed):
            pushed = frozenset[Digest]().union(*registries.pusher(repository).fallback_referrers.values())
            found.append(Unconfirmed(repository=repository, referrers=pushed, error=outcome.error))
        else:
            found += [Unconfirmed(repository=repository, referrers=one, error=error) for one, error in outcome.value.found]
    return found


def _confirmation(repository: Reference) -> Unit[units.Answer[units.UnlistedReferrers]]:
    return Unit(work=units.confirm_referrers, arguments=(repository,), hosts=frozenset({repository.host}))
