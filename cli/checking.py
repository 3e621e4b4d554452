"""`names --check`: what is there of the images that names stand for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefect_dist.cli import tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import tell
from prefect_dist.ocispec import Descriptor
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.units import size
from prefect_dist.storage import ContentStore, Name
from prefect_dist.storage.presence import Presence, check_name


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckedName:
    """What is there of an image: `found` is None where that cannot be told, and `error` None where all is."""

    name: Name
    found: Presence | None
    error: str | None

    @property
    def status(self) -> Literal["complete", "incomplete", "unavailable"]:
        if self.found is not None and not self.found.present:
            return "unavailable"
        return "complete" if self.error is None else "incomplete"


def check_names(context: Context, store: ContentStore, names: Iterable[Name], *, quiet: bool) -> int:
    """Show whether images are complete, or with `quiet` which are; 1 if any is not."""
    findings = [_look(store, name) for name in names]
    if context.output == "json":
        tables.json([_finding_json(finding) for finding in findings])
    elif quiet:
        tables.lines([finding.name.name for finding in findings if finding.error is None])
    else:
        rows = [(f.name.name, str(f.name.descriptor.digest), _status(f), _size(f)) for f in findings]
        tables.columns(("NAME", "DIGEST", "STATUS", "SIZE"), rows)
    errors = [finding.error for finding in findings if finding.error is not None]
    for error in errors:
        tell(error)
    return 1 if errors else 0


def _look(store: ContentStore, name: Name) -> _CheckedName:
    try:
        found = check_name(store, name)
    except DistError as exc:
        return _CheckedName(name=name, found=None, error=f"{name.name}: {exc}")
    return _CheckedName(name=name, found=found, error=None if found.is_complete else f"{name.name}: {found.shortage}")


def _status(finding: _CheckedName) -> str:
    if finding.found is None:
        return f"{finding.status} (?)"
    if finding.status == "unavailable":
        return finding.status
    present, missing = len(finding.found.present), len(finding.found.missing)
    return f"{finding.status} ({present}/{present + missing})"


def _size(finding: _CheckedName) -> str:
    if finding.found is None or finding.status == "unavailable":
        return "-"
    present, missing = _bytes(finding.found.present), _bytes(finding.found.missing)
    return f"{size(present)} / {size(present + missing)}" if missing else size(present)


def _finding_json(finding: _CheckedName) -> dict[str, Any]:
    found = finding.found
    return {
        "name": finding.name.name,
        "digest": str(finding.name.descriptor.digest),
        "status": finding.status,
        "present": None if found is None else len(found.present),
        "present_bytes": None if found is None else _bytes(found.present),
        "missing": None if found is None else [descriptor.to_json() for descriptor in found.missing],
        "error": finding.error,
    }


def _bytes(descriptors: Sequence[Descriptor]) -> int:
    return sum(descriptor.size for descriptor in descriptors)
