"""`dist config`: what the configuration of a mirror comes to. Of secrets only whose they are is shown."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prefect_dist.cli import inputs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import BadInput, tell
from prefect_dist.cli.options import Dialect
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.units import age

if TYPE_CHECKING:
    from prefect_dist.mirror.config import Mirror
    from prefect_dist.mirror.entry import Entry
    from prefect_dist.mirror.schedule import Schedule
    from prefect_dist.mirror.selection import Patterns, Selection, TagSet
    from prefect_dist.remotes import HostSettings


def config(context: Context, path: str, dialect: Dialect, to: Sequence[str]) -> int:
    """Show what a configuration comes to. Mistakes and conflicts in it are bad input, overlaps are warnings."""
    from prefect_dist.mirror.claims import known_conflicts, known_overlaps  # and with it pydantic
    from prefect_dist.mirror.yamlfile import in_order

    wanted = inputs.mirror(path, dialect, to)
    if conflicts := [*known_conflicts(wanted.entries), *known_conflicts(wanted.seed)]:
        raise BadInput(*in_order(conflicts, wanted.path))
    overlaps = [*known_overlaps(wanted.entries), *known_overlaps(wanted.seed)]
    warnings = [*inputs.warnings(context, wanted), *in_order(overlaps, wanted.path)]
    if context.output == "json":
        tables.json(_config_json(wanted, inputs.store_of(context, wanted), warnings))
    else:
        _show(wanted, inputs.store_of(context, wanted))
    for warning in warnings:
        tell(f"warning: {warning}")
    return 0


def _config_json(wanted: "Mirror", store: str, warnings: Sequence[str]) -> dict[str, Any]:
    return {
        "name": wanted.name,
        "store": store,
        "lock": wanted.lock,
        "concurrency": wanted.concurrency,
        "registries": [{"host": host, "settings": _settings(wanted, host)} for host in _hosts(wanted)],
        "schedules": [_schedule(schedule) for schedule in wanted.schedules],
        "sync": list(map(_entry, wanted.entries)),
        "seed": list(map(_entry, wanted.seed)),
        "warnings": list(warnings),
    }


def _show(wanted: "Mirror", store: str) -> None:
    schedules = ", ".join(map(_schedule, wanted.schedules)) or "none"
    heads = ("NAME", "STORE", "LOCK FILE", "CONCURRENCY", "SCHEDULES")
    row = (wanted.name, store, wanted.lock or "-", str(wanted.concurrency), schedules)
    tables.columns(heads, [row])
    if hosts := _hosts(wanted):
        tables.lines([""])
        tables.columns(("REGISTRY", "SETTINGS"), [(host, "; ".join(_settings(wanted, host)) or "-") for host in hosts])
    entries = [(kind, entry) for kind, part in (("sync", wanted.entries), ("seed", wanted.seed)) for entry in part]
    tables.lines([""])
    tables.columns(("FROM", "TYPE", "TO", "SETTINGS"), [_row(kind, entry) for kind, entry in entries])


def _row(kind: str, entry: "Entry") -> tuple[str, ...]:
    told = _entry(entry)
    settings = "; ".join(told["settings"]) or "-"
    return told["source"], told["type"] if kind == "sync" else kind, ", ".join(told["targets"]), settings


def _entry(entry: "Entry") -> dict[str, Any]:
    return {
        "at": entry.at,
        "source": entry.source,
        "type": entry.type,
        "targets": list(_targets(entry)),
        "settings": list(_options(entry)),
    }


def _targets(entry: "Entry") -> Iterator[str]:
    """Where an entry's images go: an image by its name there, others, and what comes to no name, as it is written."""
    try:
        names = entry.list_targets(Reference.parse(entry.source)) if entry.type == "image" else ()
    except InvalidInput:
        names = ()
    yield from map(str, names or (naming.template.text for naming in entry.targets))


def _options(entry: "Entry") -> Iterator[str]:
    yield from _patterns("repositories", entry.repositories)
    yield from _tags(entry.tags)
    if entry.platforms is not None:
        yield f"platforms {', '.join(map(str, entry.platforms))}" + (" in a new index" if entry.rewrite_index else "")
    if entry.single is not None:
        yield f"the image for {entry.single} in place of an index"
    filters = f" ({', or '.join(sorted(map(str, entry.referrer_filters)))})" if entry.referrer_filters else ""
    along = {f"referrers{filters}": entry.referrers, "digest tags": entry.digest_tags}
    if any(along.values()):
        yield f"with {' and '.join(what for what, is_wanted in along.items() if is_wanted)}"
    if entry.trust_lock:
        yield "trusts the lock file about tags that never change"
    if entry.backup is not None:
        yield f"backup {entry.backup.template.text}"
    if entry.gate is not None:
        existing = ", also for images that were mirrored before" if entry.gate.existing else ""
        yield f"gate {entry.gate.entry_point or ' '.join(entry.gate.command)}{existing}"
    if entry.prune is not None:
        yield f"prune after {age(entry.prune.grace_s)}, at most {entry.prune.most} in a run"


def _tags(tags: "Selection") -> Iterator[str]:
    sets = [", ".join(_tag_set(one)) or "all" for one in tags.sets]
    if sets:
        yield f"tags {' or '.join(sets)}"
    if tags.created is not None and tags.created.after is not None:
        yield f"made after {tags.created.after:%Y-%m-%d %H:%M}"
    if tags.created is not None and tags.created.within_s is not None:
        yield f"made within {age(tags.created.within_s)}"
    if tags.immutable.allow:
        yield f"tags that never change: {', '.join(tags.immutable.allow)}"


def _tag_set(tags: "TagSet") -> Iterator[str]:
    if tags.written:
        yield tags.written
        return
    if tags.ranges:
        yield f"versions {' or '.join(map(str, tags.ranges))}"
    yield from _patterns("", tags.patterns)
    if tags.latest is not None:
        each = "" if tags.latest.per == "all" else f" of each {tags.latest.per} version"
        yield f"the newest {tags.latest.count}{each}"


def _patterns(what: str, patterns: "Patterns") -> Iterator[str]:
    told = [f"{verb} {', '.join(found)}" for verb, found in (("like", patterns.allow), ("unlike", patterns.deny)) if found]
    if told:
        yield f"{what} {' '.join(told)}".strip()


def _hosts(wanted: "Mirror") -> list[str]:
    return list(dict.fromkeys((*wanted.hosts.named, *wanted.credentials)))


def _settings(wanted: "Mirror", host: str) -> list[str]:
    settings = wanted.hosts.named.get(host)
    told = [] if settings is None else list(_describe_access(settings))
    return [*told, "credentials"] if host in wanted.credentials else told


def _describe_access(settings: "HostSettings") -> Iterator[str]:
    if settings.hostname is not None:
        yield f"at {settings.hostname}"
    if settings.scheme is not None:
        yield settings.scheme
    if not settings.tls.verify:
        yield "any certificate"
    if settings.mirrors:
        yield f"mirrors {', '.join(settings.mirrors)}"
    if settings.path_prefix:
        yield f"below {settings.path_prefix}"
    if settings.headers:
        yield f"headers {', '.join(name for name, _ in settings.headers)}"
    if settings.in_flight is not None:
        yield f"{settings.in_flight} requests at once"
    if settings.per_second is not None:
        yield f"{settings.per_second:g} requests a second"
    yield from _exceptions(settings)


def _exceptions(settings: "HostSettings") -> Iterator[str]:
    if settings.avoid:
        yield f"without {', '.join(sorted(settings.avoid))}"
    if settings.private_hosts:
        yield f"may redirect to {', '.join(sorted(settings.private_hosts))}"
    if settings.chunk_bytes is not None:
        yield f"blobChunk {settings.chunk_bytes}"
    if settings.whole_bytes is not None:
        yield f"blobMax {settings.whole_bytes}"


def _schedule(schedule: "Schedule") -> str:
    return schedule.cron or f"every {age(schedule.interval_s or 0)}"
