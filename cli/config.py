"""The command config: validates the configuration of a mirror, and prints the entries without secrets."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prefect_dist.cli import inputs, output
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.options import MirrorFile, Shared
from prefect_dist.cli.output import print_error
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.ocispec.units import age

if TYPE_CHECKING:
    from prefect_dist.mirror.config import Mirror
    from prefect_dist.mirror.entry import Entry
    from prefect_dist.mirror.schedule import Schedule
    from prefect_dist.mirror.selection import Patterns, Selection, TagSet
    from prefect_dist.remotes import HostSettings


def config(file: MirrorFile, /, *, context: Shared) -> int:
    """Print a configuration. Mistakes and conflicts are bad input; overlaps of entries are warnings."""
    from prefect_dist.mirror.claims import list_known_conflicts, list_known_overlaps
    from prefect_dist.mirror.yamlfile import in_order

    inputs.refuse_block(file)
    wanted = inputs.load_mirror(file)
    if conflicts := [*list_known_conflicts(wanted.entries), *list_known_conflicts(wanted.seed)]:
        raise BadInput(*in_order(conflicts, wanted.path))
    overlaps = [*list_known_overlaps(wanted.entries), *list_known_overlaps(wanted.seed)]
    warnings = [*inputs.list_warnings(context, wanted), *in_order(overlaps, wanted.path)]
    store = inputs.choose_mirror_store(context, wanted)
    if context.output == "json":
        output.print_json(_config_json(wanted, store, warnings))
    else:
        _show(wanted, store)
    for warning in warnings:
        print_error(f"warning: {warning}")
    return 0


def _config_json(wanted: "Mirror", store: str, warnings: Sequence[str]) -> dict[str, Any]:
    return {
        "name": wanted.name,
        "store": store,
        "lock": wanted.lock,
        "concurrency": wanted.concurrency,
        "grain": wanted.grain,
        "registries": [{"host": host, "settings": _settings(wanted, host)} for host in _hosts(wanted)],
        "schedules": [_schedule(schedule) for schedule in wanted.schedules],
        "sync": list(map(_entry, wanted.entries)),
        "seed": list(map(_entry, wanted.seed)),
        "warnings": list(warnings),
    }


def _show(wanted: "Mirror", store: str) -> None:
    schedules = ", ".join(map(_schedule, wanted.schedules)) or "none"
    heads = ("NAME", "STORE", "LOCK FILE", "CONCURRENCY", "GRAIN", "SCHEDULES")
    row = (wanted.name, store, wanted.lock or "-", str(wanted.concurrency), wanted.grain, schedules)
    output.print_columns(heads, [row])
    if hosts := _hosts(wanted):
        output.print_lines([""])
        output.print_columns(("REGISTRY", "SETTINGS"), [(host, "; ".join(_settings(wanted, host)) or "-") for host in hosts])
    entries = [(kind, entry) for kind, part in (("sync", wanted.entries), ("seed", wanted.seed)) for entry in part]
    output.print_lines([""])
    output.print_columns(("SOURCE", "TYPE", "TARGETS", "SETTINGS"), [_row(kind, entry) for kind, entry in entries])


def _row(kind: str, entry: "Entry") -> tuple[str, ...]:
    settings = "; ".join(_options(entry)) or "-"
    return entry.source, entry.type if kind == "sync" else kind, ", ".join(_targets(entry)), settings


def _entry(entry: "Entry") -> dict[str, Any]:
    return {
        "at": entry.at,
        "source": entry.source,
        "type": entry.type,
        "targets": list(_targets(entry)),
        "settings": list(_options(entry)),
    }


def _targets(entry: "Entry") -> Iterator[str]:
    """Yield the full name of each target of an image; for other entries and invalid names, the template in the file."""
    try:
        names = entry.list_targets(Reference.parse(entry.source)) if entry.type == "image" else ()
    except InvalidInput:
        names = ()
    yield from map(str, names or (naming.template.text for naming in entry.targets))


def _options(entry: "Entry") -> Iterator[str]:
    yield from _patterns("repositories", entry.repositories)
    yield from _tags(entry.tags)
    if entry.platforms is not None:
        yield f"platforms {', '.join(map(str, entry.platforms))}" + (" (new index)" if entry.rewrite_index else "")
    if entry.single is not None:
        yield f"only the image for {entry.single}, without the index"
    filters = f" ({', or '.join(sorted(map(str, entry.referrer_filters)))})" if entry.referrer_filters else ""
    related = {f"referrers{filters}": entry.referrers, "digest tags": entry.digest_tags}
    if any(related.values()):
        yield f"with {' and '.join(kind for kind, is_wanted in related.items() if is_wanted)}"
    if entry.trust_lock:
        yield "trust the lock file for immutable tags"
    if entry.backup is not None:
        yield f"backup {entry.backup.template.text}"
    if entry.gate is not None:
        existing = ", also for images that are mirrored already" if entry.gate.existing else ""
        yield f"gate {entry.gate.entry_point or ' '.join(entry.gate.command)}{existing}"
    if entry.prune is not None:
        yield f"prune after {age(entry.prune.grace_s)}, at most {entry.prune.most} per run"


def _tags(tags: "Selection") -> Iterator[str]:
    sets = [", ".join(_tag_set(one)) or "all" for one in tags.sets]
    if sets:
        yield f"tags {' or '.join(sets)}"
    if tags.created is not None and tags.created.after is not None:
        yield f"created after {tags.created.after:%Y-%m-%d %H:%M}"
    if tags.created is not None and tags.created.within_s is not None:
        yield f"created within {age(tags.created.within_s)}"
    if tags.immutable.allow:
        yield f"immutable tags {', '.join(tags.immutable.allow)}"


def _tag_set(tags: "TagSet") -> Iterator[str]:
    if tags.ranges:
        yield f"versions {' or '.join(map(str, tags.ranges))}"
    yield from _patterns("", tags.patterns)
    if tags.latest is not None:
        each = "" if tags.latest.per == "all" else f" of each {tags.latest.per} version"
        yield f"the newest {tags.latest.count}{each}"


def _patterns(label: str, patterns: "Patterns") -> Iterator[str]:
    rules = [f"{key} {', '.join(found)}" for key, found in (("allow", patterns.allow), ("deny", patterns.deny)) if found]
    if rules:
        yield f"{label} {' '.join(rules)}".strip()


def _hosts(wanted: "Mirror") -> list[str]:
    return list(dict.fromkeys((*wanted.hosts.named, *wanted.credentials)))


def _settings(wanted: "Mirror", host: str) -> list[str]:
    settings = wanted.hosts.named.get(host)
    described = [] if settings is None else list(_describe_connection(settings))
    return [*described, "credentials"] if host in wanted.credentials else described


def _describe_connection(settings: "HostSettings") -> Iterator[str]:
    if settings.hostname is not None:
        yield f"at {settings.hostname}"
    if settings.scheme is not None:
        yield settings.scheme
    if not settings.tls.verify:
        yield "certificate not verified"
    if settings.mirrors:
        yield f"mirrors {', '.join(settings.mirrors)}"
    if settings.path_prefix:
        yield f"path prefix {settings.path_prefix}"
    if settings.headers:
        yield f"headers {', '.join(name for name, _ in settings.headers)}"
    if settings.in_flight is not None:
        yield f"{settings.in_flight} parallel requests"
    if settings.per_second is not None:
        yield f"{settings.per_second:g} requests per second"
    yield from _describe_exceptions(settings)


def _describe_exceptions(settings: "HostSettings") -> Iterator[str]:
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
