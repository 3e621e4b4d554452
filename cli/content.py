"""Commands on the content store: ls, get, names."""

import sys
from datetime import UTC, datetime
from typing import Any

from cli import inputs, tables
from cli.context import Context
from ocispec.units import age, size
from storage import Name


def ls(context: Context, *, quiet: bool) -> int:
    """List the blobs, the newest first."""
    blobs = sorted(inputs.store(context.store).walk(), key=lambda info: (info.committed, info.digest), reverse=True)
    if context.output == "json":
        tables.json([{"digest": str(b.digest), "size": b.size, "committed": b.committed} for b in blobs])
    elif quiet:
        tables.lines([str(b.digest) for b in blobs])
    else:
        tables.columns(("DIGEST", "SIZE", "AGE"), [(str(b.digest), size(b.size), _age(b.committed)) for b in blobs])
    return 0


def get(context: Context, digest: str) -> int:
    """Write a blob to standard output."""
    for piece in inputs.store(context.store).chunks(inputs.digest(digest)):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return 0


def names(context: Context, *, quiet: bool) -> int:
    """List the names, in their order."""
    known = list(inputs.store(context.store).names)
    if context.output == "json":
        tables.json([_described(name) for name in known])
    elif quiet:
        tables.lines([n.name for n in known])
    else:
        rows = [(n.name, str(n.descriptor.digest), n.descriptor.kind, _platforms(n), _age(n.recorded)) for n in known]
        tables.columns(("NAME", "DIGEST", "KIND", "PLATFORMS", "AGE"), rows)
    return 0


def _described(name: Name) -> dict[str, Any]:
    return {
        "name": name.name,
        "descriptor": name.descriptor.to_json(),
        "source": name.source,
        "platforms": None if name.platforms is None else list(map(str, name.platforms)),
        "recorded": name.recorded,
    }


def _platforms(name: Name) -> str:
    """Which were wanted: `all`, or those of a fetch with --platform."""
    return "all" if name.platforms is None else ",".join(map(str, name.platforms))


def _age(moment: datetime) -> str:
    return age((datetime.now(UTC) - moment).total_seconds())
