"""Entries of a mirror's configuration, made of the sections that say them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel

from prefect_dist.mirror.entry import Entry, Prune
from prefect_dist.mirror.naming import Naming, Rename, What
from prefect_dist.mirror.schedule import Schedule
from prefect_dist.mirror.sections import (
    Defaults,
    GateSection,
    Options,
    ReferrerFilterSection,
    SeedSection,
    SyncEntry,
    TagFilter,
)
from prefect_dist.mirror.selection import NOTHING, Latest, Patterns, Selection, TagSet, Window
from prefect_dist.mirror.semver import Range
from prefect_dist.mirror.templates import Template
from prefect_dist.mirror.validation import MistakeLog, is_host
from prefect_dist.mirror.yamlfile import Document, Place
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput, quote_text
from prefect_dist.ocispec.platform import Platform
from prefect_dist.ocispec.reference import expand
from prefect_dist.ocispec.referrers import ReferrerFilter
from prefect_dist.transfer.gate import Gate


class Entries:
    """Makes entries; mistakes go to a log.

    `schedules` are those of all that were made, each once; `idle` are places of what has no effect in its entry, and why.
    """

    def __init__(self, document: Document, defaults: Defaults, mistakes: MistakeLog) -> None:
        self._document, self._defaults, self._mistakes = document, defaults, mistakes
        self.schedules: dict[Schedule, None] = {}
        self.idle: list[tuple[Place, str]] = []

    def make_sync_entry(self, section: SyncEntry, place: Place) -> Entry | None:
        """Return the entry for one item of `sync`; None if it has mistakes."""
        known, attempt, repos = len(self._mistakes), self._mistakes.attempt, section.repos
        at = self._document.where((*place, "source"))
        if section.platform and section.platforms:
            self._mistakes.add([f"{self._document.where((*place, 'platform'))}: expected either platform or platforms"])
        sync = {"Source": section.source, "Target": section.target or "", "Type": section.type}
        template = attempt(lambda: Template.read(section.source, at=at, objects={"Sync": tuple(sync)}).render({"Sync": sync}))
        sync["Source"] = template or section.source
        source = None if template is None else attempt(lambda: _source(template, section.type, at))
        named = [(section.target, (*place, "target"))] if section.target else []
        named += [(text, (*place, "targets", number)) for number, text in enumerate(section.targets)]
        self._collect_idle(section, place)
        options = _Options(section, place, self._defaults, self._document, self._mistakes)
        targets, backup, rest = options.targets(named, section.type, sync), options.backup(sync), attempt(options.rest)
        self._take_note(options)
        if len(self._mistakes) > known or source is None or rest is None:
            return None
        return Entry(
            at=self._document.where(place),
            source=source,
            type=section.type,
            targets=targets,
            repositories=Patterns(allow=tuple(repos.allow), deny=tuple(repos.deny)) if repos else Patterns(),
            tags=_selection(section, options.immutable),
            backup=backup,
            single=Platform.parse(section.platform) if section.platform else None,
            **rest,
        )

    def make_seed_entries(self, section: SeedSection, place: Place) -> Iterator[Entry]:
        """Return the entries of `seed` without mistakes: one for each image, all with the same targets."""
        attempt = self._mistakes.attempt
        options = _Options(section, place, self._defaults, self._document, self._mistakes)
        self._take_note(options)
        named: list[tuple[str, Place]] = [(text, (*place, "to", number)) for number, text in enumerate(section.to)]
        targets, rest = options.targets(named, "registry", {"Type": "image"}), attempt(options.rest)
        for text, at in attempt(lambda: self._images(section, place)) or ():
            source = attempt(lambda text=text, at=at: _source(text, "image", at))  # type: ignore[misc]
            backup = options.backup({"Source": text, "Type": "image"})
            if source is None or rest is None:
                continue
            yield Entry(
                at=at,
                source=source,
                type="image",
                targets=targets,
                repositories=Patterns(),
                tags=Selection(immutable=options.immutable),
                backup=backup,
                single=None,
                **rest,
            )

    def _images(self, section: SeedSection, place: Place) -> list[tuple[str, str]]:
        """Return the images of `seed`, each with its place."""
        images = [(text, self._document.where((*place, "images", number))) for number, text in enumerate(section.images)]
        if section.file is not None:
            at = (*place, "list")
            path = Path(self._document.resolve_path(section.file, at))
            images += read_references(path, at=self._document.where(at))
            if not images:
                raise InvalidInput(f"{path}: expected images, one in a line; there are none")
        if not images:
            raise InvalidInput(f"{self._document.where(place)}: expected images, or a list of them")
        return images

    def _collect_idle(self, section: SyncEntry, place: Place) -> None:
        """Collect the options that have no effect on an entry; another entry that shares them by an anchor may use them."""
        if section.type == "image":
            idle = [key for key, said in (("tags", section.tags), ("tagSets", section.tag_sets)) if said]
            self.idle += [((*place, key), "an image is named by its source") for key in idle]
        if section.type != "registry" and section.repos:
            self.idle.append(((*place, "repos"), "type is not registry"))

    def _take_note(self, options: "_Options") -> None:
        """Keep the schedule of an entry, and the places of options that have no effect in it."""
        self.idle += options.idle()
        if (schedule := options.schedule()) is not None:
            self.schedules.setdefault(schedule)


class _Options:
    """The options of a section; the defaults apply to those that it does not set."""

    def __init__(self, section: Options, place: Place, defaults: Defaults, document: Document, mistakes: MistakeLog) -> None:
        self._said = section.model_fields_set & Options.model_fields.keys()
        if self._said & {"interval", "schedule"}:
            self._said |= {"interval", "schedule"}  # either is said instead of both
        self._all = defaults.model_copy(update={name: getattr(section, name) for name in self._said})
        self._place, self._document, self._mistakes = place, document, mistakes

    @property
    def immutable(self) -> Patterns:
        """Return the tags that never change."""
        return Patterns(allow=tuple(self._all.immutable_tags)) if self._all.immutable_tags else NOTHING

    def targets(self, named: Sequence[tuple[str, Place]], what: What, sync: Mapping[str, str]) -> tuple[Naming, ...]:
        """Return the names at targets from the texts at some places, without mistakes."""
        renames = tuple(one.rule() for one in self._all.rename)
        found = (self._parse_naming(text, place, what, sync, renames) for text, place in named)
        return tuple(naming for naming in found if naming is not None)

    def _parse_naming(
        self, text: str, place: Place, what: What, sync: Mapping[str, str], renames: tuple[Rename, ...]
    ) -> Naming | None:
        known, at = {**sync, "Target": text, **self._known()}, self._document.where(place)
        return self._mistakes.attempt(lambda: Naming.read(text, at=at, what=what, sync=known, renames=renames))

    def backup(self, sync: Mapping[str, str]) -> Naming | None:
        """Return the name of backups."""
        text = self._all.backup
        if not text:
            return None
        known = {"Target": "", **sync, **self._known()}
        return self._mistakes.attempt(lambda: Naming.read(text, at=self._where("backup"), what="backup", sync=known))

    def idle(self) -> list[tuple[Place, str]]:
        """Return the places of options in the section that have no effect together with its other options, and why."""
        is_idle = "referrer_filters" in self._said and self._all.referrer_filters and not self._all.referrers
        return [((*self._place, "referrerFilters"), "referrers is not true")] if is_idle else []

    def schedule(self) -> Schedule | None:
        """Return the schedule."""
        text = self._all.schedule
        if text:
            return self._mistakes.attempt(lambda: Schedule.parse(text, at=self._where("schedule")))
        if self._all.interval:
            return Schedule(at=self._where("interval"), interval_s=self._all.interval)
        return None

    def rest(self) -> dict[str, Any]:
        """Return the options that an entry takes unchanged."""
        said = self._all
        if said.rewrite_index and not said.platforms:
            raise InvalidInput(f"{self._where('rewrite_index')}: expected platforms, of which to make an index")
        gate, prune = said.gate, said.prune
        return {
            "platforms": tuple(Platform.parse(one) for one in said.platforms) if said.platforms else None,
            "rewrite_index": said.rewrite_index,
            "referrers": said.referrers,
            "referrer_filters": frozenset(map(_referrer_filter, said.referrer_filters)) if said.referrers else frozenset(),
            "digest_tags": said.referrers if said.digest_tags is None else said.digest_tags,
            "trust_lock": said.trust_lock,
            "gate": gate and _gate(gate),
            "prune": prune and Prune(grace_s=prune.after, most=prune.most),
        }

    def _known(self) -> dict[str, str]:
        interval = _format_interval(self._all.interval) if self._all.interval else ""
        return {"Backup": self._all.backup or "", "Interval": interval, "Schedule": self._all.schedule or ""}

    def _where(self, name: str) -> str:
        """Return the place of an option: in the entry or among the defaults."""
        return self._document.where((*(self._place if name in self._said else ("defaults",)), to_camel(name)))


def _format_interval(seconds: float) -> str:
    """Return an interval as regsync's templates show it: `1h0m0s`, `5m0s`, `30s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def read_references(path: Path, *, at: str) -> list[tuple[str, str]]:
    """Return the references in a file, one per line, each with its place; `#` begins a comment.

    Raises:
        InvalidInput: it cannot be read; the message begins with `at`.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as exc:  # no UTF-8, or no path
        name = path if str(path).isprintable() else quote_text(str(path))
        raise InvalidInput(f"{at}: {name}: {getattr(exc, 'strerror', None) or 'expected a file of text'}") from exc
    texts = [(line.partition("#")[0].strip(), f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    return [(text, place) for text, place in texts if text]


def _referrer_filter(section: ReferrerFilterSection) -> ReferrerFilter:
    """Return the filter of a section. An empty artifact type is none, as with regsync."""
    return ReferrerFilter(artifact_type=section.artifact_type or None, annotations=frozenset(section.annotations.items()))


def _gate(section: GateSection) -> Gate:
    return Gate(
        command=tuple(section.command),
        entry_point=section.python,
        timeout_s=section.timeout,
        existing=section.existing,
    )


def _source(text: str, type_: str, at: str) -> str:
    """Return the registry, repository or image of an entry."""
    if type_ == "registry":
        if is_host(text):
            return text
        raise InvalidInput(f"{at}: expected host[:port] of a registry, got {text!r}")
    try:
        reference = Reference.parse(expand(text))
    except InvalidInput as exc:
        raise InvalidInput(f"{at}: {exc}") from exc
    if type_ == "image":
        return str(reference)
    if "@" in text or text.endswith(f":{reference.tag}"):
        raise InvalidInput(f"{at}: expected a repository without tag or digest, got {text!r}")
    return reference.locator


def _selection(section: SyncEntry, immutable: Patterns) -> Selection:
    sets = [_tag_set(one) for one in section.tag_sets]
    created: Window | None = None
    if section.tags is not None:
        own, window = _tag_set(section.tags), section.tags.created
        sets += [own] if own != TagSet() else []
        created = Window(after=window.after, within_s=window.within) if window else None
    return Selection(sets=tuple(sets), created=created, immutable=immutable)


def _tag_set(said: TagFilter) -> TagSet:
    return TagSet(
        patterns=Patterns(allow=tuple(said.allow), deny=tuple(said.deny)),
        ranges=tuple(Range.parse(one) for one in said.semver_range),
        latest=Latest(count=said.latest.count, per=said.latest.per) if said.latest else None,
    )
