"""Audits the targets of a mirror, and finds the source of missing content."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prefect_dist.mirror.claims import EntryIndex
from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.lock import Locked, Records
from prefect_dist.mirror.plan import PlannedImage, SyncItem, TargetAction
from prefect_dist.mirror.plan_image import with_backup
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.errors import DistError, InvalidInput
from prefect_dist.transfer import units
from prefect_dist.transfer.audit import Expected, Finding
from prefect_dist.transfer.events import Notify, Planned
from prefect_dist.transfer.pool import Failed, Pool, Unit, split_batches
from prefect_dist.transfer.repair_source import Located

# The number of tags of one repository that one task audits.
_MOST_TAGS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Audits:
    """The results of audits: the number of targets that are ok, findings for damaged targets, errors of unresolved targets."""

    ok: int = 0
    damaged: Mapping[Reference, Finding] = field(default_factory=dict)
    unresolved: Mapping[Reference, DistError] = field(default_factory=dict)


class Auditing:
    """The audits of a run."""

    def __init__(self, pool: Pool, notify: Notify, entries: Sequence[Entry]) -> None:
        self._pool, self._notify = pool, notify
        self._entry_index = EntryIndex(entries)

    def select(self, locked: Records) -> Records:
        """Return the records of published targets that an entry selects."""
        return {target: record for target, record in locked.items() if self._is_wanted(target, record)}

    def audit(self, wanted: Records) -> Audits:
        """Audit targets. The results have the order of the targets."""
        chunks = _batches_by_repository(_expected_state(target, record) for target, record in wanted.items())
        damaged, unresolved, count = dict[Reference, Finding](), dict[Reference, DistError](), 0
        for chunk, outcome in self._pool.run(chunks, _audit_unit):
            count += len(chunk)
            self._notify(Planned(count, len(wanted)))
            findings = [outcome.error] * len(chunk) if isinstance(outcome, Failed) else outcome.value.found
            for expected, found in zip(chunk, findings, strict=True):
                if isinstance(found, DistError):
                    unresolved[expected.target] = found
                elif found.faults:
                    damaged[expected.target] = found
        return Audits(
            ok=len(wanted) - len(damaged) - len(unresolved),
            damaged={target: damaged[target] for target in wanted if target in damaged},
            unresolved={target: unresolved[target] for target in wanted if target in unresolved},
        )

    def locate(self, found: Audits, locked: Records) -> tuple[dict[PlannedImage, Located], dict[Reference, DistError]]:
        """Return the images to repair with the sources of the content, and the errors of irreparable targets."""

        def unit(target: Reference) -> Unit[Located]:
            record, origin = locked[target], Reference.parse(locked[target].source)
            entry = self._entry_index.find_first(target, origin)
            is_rewritten = entry is not None and entry.rewrite_index
            return Unit(
                work=units.locate,
                arguments=(origin, _expected_state(target, record)),
                options={"rewritten": is_rewritten},
                hosts=frozenset({origin.host}),
            )

        images, lost = dict[PlannedImage, Located](), dict[Reference, DistError]()
        for target, outcome in self._pool.run(found.damaged, unit):
            if isinstance(outcome, Failed):
                lost[target] = outcome.error
                continue
            image = self._image(target, locked[target], found.damaged[target].root, outcome.value.root)
            if image.due:
                images[image] = outcome.value
            else:
                lost[target] = image.actions[0].error or InvalidInput("the image cannot be repaired")
        return images, lost

    def _image(self, target: Reference, record: Locked, old: Descriptor | None, root: Descriptor) -> PlannedImage:
        source = Reference.parse(record.source)
        entry = self._entry_index.find_first(target, source)
        if entry is None:
            raise ValueError(f"{target}: expected a target that an entry selects")
        item = SyncItem(entry=entry, source=source, targets=(target,))
        action = with_backup(TargetAction(item=item, target=target, change="repair", old=old, new=root))
        return PlannedImage(item=item, root=root, content=(), sent=(), actions=(action,))

    def _is_wanted(self, target: Reference, record: Locked) -> bool:
        if record.mirrored is None or record.unwanted is not None:
            return False
        return self._entry_index.find_first(target, Reference.parse(record.source)) is not None


def _expected_state(target: Reference, record: Locked) -> Expected:
    """Return the expected state of a target. A rewritten index is expected with the whole content."""
    return Expected(target=target, digest=record.digest, platforms=record.platforms, referrers=record.referrers)


def _batches_by_repository(expected: Iterable[Expected]) -> Iterator[tuple[Expected, ...]]:
    """Yield batches of tags. A batch has tags of a single repository, because tags of a repository share content."""
    by_repository = defaultdict[str, list[Expected]](list)
    for one in expected:
        by_repository[one.target.locator].append(one)
    for tags in by_repository.values():
        yield from split_batches(tags, _MOST_TAGS)


def _audit_unit(chunk: tuple[Expected, ...]) -> Unit[units.Answers[Finding | DistError]]:
    return Unit(work=units.audit, arguments=(chunk,), hosts=frozenset({chunk[0].target.host}))
