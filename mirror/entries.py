"""Makes the entries of a mirror from the sections of its configuration."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel

from prefect_dist.mirror.entry import Entry, Prune
from prefect_dist.mirror.naming import Naming, What
from prefect_dist.mirror.schedule import Schedule
from prefect_dist.mirror.sections import Defaults, GateSection, Options, Repositories, SeedSection, SyncEntry, TagFilter
from prefect_dist.mirror.selection import NOTHING, Latest, Patterns, Selection, TagSet, Window
from prefect_dist.mirror.semver import Range
from prefect_dist.mirror.templates import Template
from prefect_dist.mirror.validation import MistakeLog, is_host, located
from prefect_dist.mirror.yamlfile import Document, Place, resolve_locator
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput, quote_text
from prefect_dist.ocispec.platform import Platform
from prefect_dist.ocispec.reference import expand, find_scheme, has_object, remove_comment, require_local_archive
from prefect_dist.ocispec.referrers import ReferrerFilter
from prefect_dist.ocispec.schemes import STORE
from prefect_dist.transfer.gate import Gate


class EntryFactory:
    """Makes entries. A section with a mistake makes no entry, and the mistake goes to a log.

    `schedules` are the distinct schedules of the sections. `idle` has the places of keys without effect, each with the reason.
    """

    def __init__(self, document: Document, defaults: Defaults, mistakes: MistakeLog) -> None:
        self._document, self._defaults, self._mistakes = document, defaults, mistakes
        self.schedules: dict[Schedule, None] = {}
        self.idle: list[tuple[Place, str]] = []

    def make_sync_entry(self, section: SyncEntry, place: Place) -> Entry | None:
        """Return the entry for one item of `sync`; None if the item has mistakes."""
        known, attempt = len(self._mistakes), self._mistakes.attempt
        at = self._document.where((*place, "source"))
        sync = {"Source": section.source, "Target": section.target or "", "Type": section.type}
        text = attempt(lambda: Template.read(section.source, at=at, objects={"Sync": tuple(sync)}).render({"Sync": sync}))
        sync["Source"] = text or section.source
        located_text = None if text is None else attempt(lambda: self._document.resolve_locator(text, (*place, "source")))
        source = None if located_text is None else attempt(lambda: _parse_source(located_text, section.type, at))
        named = [(section.target, (*place, "target"))] if section.target else []
        named += [(text, (*place, "targets", number)) for number, text in enumerate(section.targets)]
        self._note_idle_filters(section, place)
        options = self._read_options(section, place)
        targets, backup, rest = options.targets(named, section.type, sync), options.backup(sync), attempt(options.rest)
        if len(self._mistakes) > known or source is None or rest is None:
            return None
        return Entry(
            at=self._document.where(place),
            source=source,
            type=section.type,
            targets=targets,
            repositories=Patterns() if section.repos is None else _patterns(section.repos),
            tags=_selection(section, options.immutable),
            backup=backup,
            single=Platform.parse(section.platform) if section.platform else None,
            **rest,
        )

    def make_seed_entries(self, section: SeedSection, place: Place) -> Iterator[Entry]:
        """Yield an entry for each valid image of `seed`. The entries have the same targets."""
        attempt, options = self._mistakes.attempt, self._read_options(section, place)
        named: list[tuple[str, Place]] = [(text, (*place, "to", number)) for number, text in enumerate(section.to)]
        targets, rest = options.targets(named, "registry", {"Type": "image"}), attempt(options.rest)
        tags = Selection(immutable=options.immutable)
        for text, at in attempt(lambda: self._list_images(section, place)) or ():
            source = attempt(partial(_parse_source, text, "image", at))
            backup = options.backup({"Source": text, "Type": "image"})
            if source is not None and rest is not None:
                yield Entry(at=at, source=source, type="image", targets=targets, tags=tags, backup=backup, **rest)

    def _list_images(self, section: SeedSection, place: Place) -> list[tuple[str, str]]:
        """Return the images of `seed`, each with its place."""
        listed = [(text, (*place, "images", number)) for number, text in enumerate(section.images)]
        images = [(self._document.resolve_locator(text, at), self._document.where(at)) for text, at in listed]
        if section.file is not None:
            at = (*place, "list")
            path = Path(self._document.resolve_path(section.file, at))
            found = read_references(path, at=self._document.where(at))
            images += [(resolve_locator(text, str(path)), line) for text, line in found]
            if not images:
                raise InvalidInput("expected one image reference per line, got an empty list", subject=path)
        if not images:
            raise InvalidInput("expected images, or a list of them", subject=self._document.where(place))
        return images

    def _note_idle_filters(self, section: SyncEntry, place: Place) -> None:
        """Note filters without effect on the type of an entry. YAML anchors share filters between entries of several types."""
        filters = {"tags": section.tags, "tagSets": section.tag_sets} if section.type == "image" else {}
        self.idle += [((*place, key), "source names one image") for key, value in filters.items() if value]
        if section.type != "registry" and section.repos:
            self.idle.append(((*place, "repos"), "type is not registry"))

    def _read_options(self, section: Options, place: Place) -> "_Options":
        options = _Options(section, place, self._defaults, self._document, self._mistakes)
        self.idle += options.idle()
        if (schedule := options.schedule()) is not None:
            self.schedules.setdefault(schedule)
        return options


class _Options:
    """The options of a section. The defaults apply to options that the section does not set."""

    def __init__(self, section: Options, place: Place, defaults: Defaults, document: Document, mistakes: MistakeLog) -> None:
        self._own = section.model_fields_set & Options.model_fields.keys()
        if self._own & {"interval", "schedule"}:
            self._own |= {"interval", "schedule"}  # a section that sets either replaces both
        self._all = defaults.model_copy(update={name: value for name, value in section if name in self._own})
        self._place, self._document, self._mistakes = place, document, mistakes

    @property
    def immutable(self) -> Patterns:
        """Patterns of tags that never change."""
        return Patterns(allow=tuple(self._all.immutable_tags)) if self._all.immutable_tags else NOTHING

    def targets(self, named: Sequence[tuple[str, Place]], what: What, sync: Mapping[str, str]) -> tuple[Naming, ...]:
        """Return the valid names at targets. `named` are their texts, each with its place."""
        namings = (self._parse_naming(text, place, what, {**sync, "Target": text}) for text, place in named)
        return tuple(naming for naming in namings if naming is not None)

    def backup(self, sync: Mapping[str, str]) -> Naming | None:
        """Return the name of backups; None without `backup`."""
        text = self._all.backup
        return self._parse_naming(text, self._place_of("backup"), "backup", {"Target": "", **sync}) if text else None

    def _parse_naming(self, text: str, place: Place, what: What, sync: Mapping[str, str]) -> Naming | None:
        interval = _format_interval(self._all.interval) if self._all.interval else ""
        sync = {**sync, "Backup": self._all.backup or "", "Interval": interval, "Schedule": self._all.schedule or ""}
        renames = () if what == "backup" else tuple(rule.to_rename() for rule in self._all.rename)
        at = self._document.where(place)

        def read() -> Naming:
            located_text = text if what == "backup" else self._document.resolve_locator(text, place)
            return Naming.read(located_text, at=at, what=what, sync=sync, renames=renames)

        return self._mistakes.attempt(read)

    def idle(self) -> list[tuple[Place, str]]:
        """Return the place of each option that has no effect because of a further option, with the reason."""
        is_idle = "referrer_filters" in self._own and self._all.referrer_filters and not self._all.referrers
        return [((*self._place, "referrerFilters"), "referrers is not true")] if is_idle else []

    def schedule(self) -> Schedule | None:
        """Return the schedule; None without one."""
        text = self._all.schedule
        if text:
            return self._mistakes.attempt(lambda: Schedule.parse(text, at=self._where("schedule")))
        return Schedule(at=self._where("interval"), interval_s=self._all.interval) if self._all.interval else None

    def rest(self) -> dict[str, Any]:
        """Return the options that an entry takes unchanged."""
        options = self._all
        if options.rewrite_index and not options.platforms:
            raise InvalidInput(
                "requires platforms, which select the content of the new index", subject=self._where("rewrite_index")
            )
        gate, prune = options.gate, options.prune
        filters = [
            # As with regsync, an empty artifact type is none.
            ReferrerFilter(artifact_type=one.artifact_type or None, annotations=frozenset(one.annotations.items()))
            for one in options.referrer_filters
        ]
        return {
            "platforms": tuple(Platform.parse(one) for one in options.platforms) if options.platforms else None,
            "rewrite_index": options.rewrite_index,
            "referrers": options.referrers,
            "referrer_filters": frozenset(filters) if options.referrers else frozenset(),
            "digest_tags": options.referrers if options.digest_tags is None else options.digest_tags,
            "trust_lock": options.trust_lock,
            "gate": gate and _gate(gate),
            "prune": prune and Prune(grace_s=prune.after, most=prune.most),
        }

    def _place_of(self, name: str) -> Place:
        """Return the place of an option: in the section or among the defaults."""
        return (*(self._place if name in self._own else ("defaults",)), to_camel(name))

    def _where(self, name: str) -> str:
        return self._document.where(self._place_of(name))


def _format_interval(seconds: float) -> str:
    """Return an interval as regsync's templates show it: `1h0m0s`, `5m0s`, `30s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def read_references(path: Path, *, at: str) -> list[tuple[str, str]]:
    """Return the references in a file, one per line, each with its place. `#` after a space or at the start begins a comment.

    Raises:
        InvalidInput: the file is not readable; the message begins with `at`.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as exc:  # ValueError: the content is not UTF-8, or the path has a null byte
        name = path if str(path).isprintable() else quote_text(str(path))
        raise InvalidInput(f"{name}: {getattr(exc, 'strerror', None) or 'expected a text file in UTF-8'}", subject=at) from exc
    texts = [(remove_comment(line), f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    return [(text, place) for text, place in texts if text]


def _gate(section: GateSection) -> Gate:
    return Gate(
        command=tuple(section.command), entry_point=section.python, timeout_s=section.timeout, existing=section.existing
    )


def _parse_source(text: str, type_: str, at: str) -> str:
    """Return the host, the locator or the reference in a text."""
    scheme = find_scheme(text)
    if type_ == "registry":
        if is_host(text):
            return text
        advice = f"; {scheme}: cannot list repositories; write one entry of type repository per repository"
        remedy = "" if scheme is None else advice
        raise InvalidInput(f"expected host[:port] of a registry, got {text!r}{remedy}", subject=at)
    with located(at):
        reference = Reference.parse(expand(text))
        reference.pinned_digest()
        require_local_archive(reference)
    if scheme == STORE and type_ == "repository":
        raise InvalidInput(
            f"{text!r} is one image, because the store lists no tags; write an entry of type image for each name", subject=at
        )
    if type_ == "image":
        return str(reference)
    if has_object(text):
        raise InvalidInput(f"expected a repository without tag or digest, got {text!r}; use type: image, or tags", subject=at)
    return reference.locator


def _selection(section: SyncEntry, immutable: Patterns) -> Selection:
    sets = [_tag_set(one) for one in section.tag_sets]
    created: Window | None = None
    if section.tags is not None:
        own, window = _tag_set(section.tags), section.tags.created
        sets += [own] if own != TagSet() else []
        created = Window(after=window.after, within_s=window.within) if window else None
    return Selection(sets=tuple(sets), created=created, immutable=immutable)


def _tag_set(section: TagFilter) -> TagSet:
    return TagSet(
        patterns=_patterns(section),
        ranges=tuple(Range.parse(one) for one in section.semver_range),
        latest=Latest(count=section.latest.count, per=section.latest.per) if section.latest else None,
    )


def _patterns(section: TagFilter | Repositories) -> Patterns:
    return Patterns(allow=tuple(section.allow), deny=tuple(section.deny))
