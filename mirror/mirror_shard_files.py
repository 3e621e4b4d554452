"""The files of a divided run in the content store: the input and the result of each shard, as JSON.

runs/<run>/shard-<number>.json   the images of a shard, written before the shard is submitted
runs/<run>/result-<number>.json  the results of a shard, written when the shard ends
runs/<run>/alive-<number>.json   written again every 20 s while the shard runs
runs/<run>/alive.json            written again every 20 s while the parent waits for shards
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.plan import Change, PlannedImage, SyncItem, TargetAction
from prefect_dist.mirror.results import GateVeto, MirrorResults
from prefect_dist.mirror.shard_format import (
    dump,
    error_json,
    parse,
    parse_errors,
    parse_quotas,
    parse_stats,
    refuse_damage,
    work_json,
)
from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference, fields
from prefect_dist.ocispec.errors import DistError, InvalidInput, quote_text
from prefect_dist.ocispec.referrers import ReferrerFilter
from prefect_dist.remotes import Quota
from prefect_dist.transfer.gate import Gate
from prefect_dist.transfer.stats import TransferStats

_CHANGES: Mapping[str, Change] = {"add": "add", "change": "change", "repair": "repair", "unchanged": "unchanged"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorShardInput:
    """The images of a shard, with the options of their entries and the actions that are due.

    `new` are the locators of target repositories that had no content before the run.
    """

    images: tuple[PlannedImage, ...]
    new: frozenset[str] = frozenset()

    @property
    def targets(self) -> frozenset[Reference]:
        """Return the targets of the shard."""
        actions = (action for image in self.images for action in image.actions)
        return frozenset(action.target for action in actions if action.is_due or action.is_judged)

    def list_hosts(self, *, is_offline: bool) -> frozenset[str]:
        """Return the target registries, and the source registries unless the run is offline."""
        sources = set[str]() if is_offline else {image.item.source.host for image in self.images}
        return frozenset(sources | {target.host for target in self.targets})

    def parse_result(self, raw: bytes, *, at: str) -> "MirrorShardResult":
        """Return the result in a file, see `MirrorShardResult.from_json`."""
        return MirrorShardResult.from_json(raw, targets=self.targets, at=at)

    def to_json(self) -> bytes:
        """Return the content of the file."""
        entries = list({image.item.entry.at: image.item.entry for image in self.images}.values())
        numbers = {entry.at: number for number, entry in enumerate(entries)}
        images = [{"entry": numbers[image.item.entry.at], **_image_json(image)} for image in self.images]
        options = [_entry_json(entry) for entry in entries]
        return dump({"kind": "mirror", "entries": options, "images": images, "new": sorted(self.new)})

    @classmethod
    def from_json(cls, raw: bytes, *, at: str) -> Self:
        """Return the images in a file.

        Raises:
            InvalidInput, Unsupported: the file is damaged, or from another version of this program.
        """
        with refuse_damage(at):
            document = parse(raw, at=at)
            entries = [_parse_entry(one, at=where) for where, one in fields.objects(document, "entries", at=at)]
            found = fields.objects(document, "images", at=at)
            new = frozenset(fields.strings(document, "new", at=at))
            return cls(images=tuple(_parse_image(one, entries, at=where) for where, one in found), new=new)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorShardResult:
    """The results of a shard, the counts of its transfers, the number of its units of work, and the last reported quotas."""

    results: MirrorResults
    stats: TransferStats = field(default_factory=TransferStats)
    tasks: int = 0
    quotas: Mapping[str, Quota] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the content of the file."""
        found = self.results
        return dump(
            {
                "failures": {str(target): [error_json(one) for one in failed] for target, failed in found.failures.items()},
                "vetoes": {str(target): asdict(veto) for target, veto in found.vetoes.items()},
                "referrers": {
                    str(target): {str(digest): tag for digest, tag in pushed.items()}
                    for target, pushed in found.referrers.items()
                },
                "begun": sorted(map(str, found.begun)),
                "stopped": found.is_stopped,
                **work_json(self.stats, self.tasks, self.quotas),
            }
        )

    @classmethod
    def from_json(cls, raw: bytes, *, targets: Collection[Reference], at: str) -> Self:
        """Return the results in a file, for a shard with these targets.

        Raises:
            InvalidInput, Unsupported: the file is damaged, or has a result for a target of another shard.
        """
        with refuse_damage(at):
            document = parse(raw, at=at)
            read, stats = fields.require, parse_stats(document, at=at)
            results = MirrorResults(
                failures=_parse_failures(document, at=at),
                vetoes={
                    Reference.parse(target): _parse_veto(veto, at=f"{at}.vetoes")
                    for target, veto in read(document, "vetoes", dict, at=at).items()
                },
                referrers=_parse_referrers(document, at=at),
                begun=frozenset(map(Reference.parse, fields.strings(document, "begun", at=at))),
                is_stopped=read(document, "stopped", bool, at=at),
            )
            named = {*results.failures, *results.vetoes, *results.referrers, *results.begun}
            if foreign := sorted(map(str, named.difference(targets))):
                raise InvalidInput(f"expected only targets of the shard, got {quote_text(foreign[0])}", subject=at)
            return cls(
                results=results,
                stats=stats,
                tasks=read(document, "tasks", int, at=at),
                quotas=parse_quotas(document, at=at),
            )


def _parse_failures(document: fields.Json, *, at: str) -> dict[Reference, tuple[DistError, ...]]:
    place = f"{at}.failures"
    failures = fields.require(document, "failures", dict, at=at)
    return {Reference.parse(target): parse_errors(failures, target, at=place) for target in failures}


def _parse_referrers(document: fields.Json, *, at: str) -> dict[Reference, dict[Digest, str | None]]:
    place = f"{at}.referrers"
    referrers = fields.require(document, "referrers", dict, at=at)
    return {
        Reference.parse(target): {Digest.parse(digest): fields.optional(pushed, digest, str, at=place) for digest in pushed}
        for target, pushed in referrers.items()
    }


def _parse_veto(document: fields.Json, *, at: str) -> GateVeto:
    return GateVeto(**{name: fields.require(document, name, str, at=at) for name in document})


def _entry_json(entry: Entry) -> dict[str, Any]:
    """Return the options of an entry that matter after planning."""
    return {
        "at": entry.at,
        "platforms": None if entry.platforms is None else [str(one) for one in entry.platforms],
        "rewriteIndex": entry.rewrite_index,
        "referrers": entry.referrers,
        "digestTags": entry.digest_tags,
        "filters": [
            {"artifactType": one.artifact_type, "annotations": dict(sorted(one.annotations))}
            for one in sorted(entry.referrer_filters, key=str)
        ],
        "gate": None if entry.gate is None else asdict(entry.gate),
    }


def _parse_entry(document: fields.Json, *, at: str) -> Entry:
    platforms, gate = fields.optional(document, "platforms", list, at=at), fields.optional(document, "gate", dict, at=at)
    return Entry(
        at=fields.require(document, "at", str, at=at),
        source="",
        type="image",
        targets=(),
        platforms=None if platforms is None else tuple(map(Platform.parse, platforms)),
        rewrite_index=fields.require(document, "rewriteIndex", bool, at=at),
        referrers=fields.require(document, "referrers", bool, at=at),
        digest_tags=fields.require(document, "digestTags", bool, at=at),
        referrer_filters=frozenset(
            ReferrerFilter(
                artifact_type=fields.optional(one, "artifactType", str, at=where),
                annotations=frozenset(fields.pairs(one, "annotations", at=where)),
            )
            for where, one in fields.objects(document, "filters", at=at)
        ),
        gate=None if gate is None else Gate(**{**gate, "command": fields.strings(gate, "command", at=f"{at}.gate")}),
    )


def _image_json(image: PlannedImage) -> dict[str, Any]:
    return {
        "source": str(image.item.source),
        "root": None if image.root is None else image.root.to_json(),
        "actions": [_action_json(action) for action in image.actions if action.is_due or action.is_judged],
    }


def _action_json(action: TargetAction) -> dict[str, Any]:
    return {
        "target": str(action.target),
        "change": action.change,
        "old": None if action.old is None else action.old.to_json(),
        "new": None if action.new is None else action.new.to_json(),
        "backup": None if action.backup is None else str(action.backup),
    }


def _parse_image(document: fields.Json, entries: Sequence[Entry], *, at: str) -> PlannedImage:
    number = fields.require(document, "entry", int, at=at)
    if not 0 <= number < len(entries):
        raise InvalidInput(f"expected an entry from 0 to {len(entries) - 1}, got {number}", subject=at)
    source = Reference.parse(fields.require(document, "source", str, at=at))
    found = [one for _, one in fields.objects(document, "actions", at=at)]
    targets = tuple(Reference.parse(fields.require(one, "target", str, at=at)) for one in found)
    item = SyncItem(entry=entries[number], source=source, targets=targets)
    actions = tuple(_parse_action(item, target, one, at=at) for target, one in zip(targets, found, strict=True))
    return PlannedImage(item=item, root=_descriptor(document, "root", at=at), content=(), sent=(), actions=actions)


def _parse_action(item: SyncItem, target: Reference, document: fields.Json, *, at: str) -> TargetAction:
    change, backup = fields.require(document, "change", str, at=at), fields.optional(document, "backup", str, at=at)
    if change not in _CHANGES:
        raise InvalidInput(f"unknown change {change!r}", subject=at)
    return TargetAction(
        item=item,
        target=target,
        change=_CHANGES[change],
        old=_descriptor(document, "old", at=at),
        new=_descriptor(document, "new", at=at),
        backup=None if backup is None else Reference.parse(backup),
    )


def _descriptor(document: fields.Json, key: str, *, at: str) -> Descriptor | None:
    found = fields.optional(document, key, dict, at=at)
    return None if found is None else Descriptor.from_json(found, at=f"{at}.{key}")
