"""Commands that show what is in the content store: ls, get, active."""

import re
import sys
from collections.abc import Sequence

from prefect_dist.cli import inputs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import BadInput
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.units import size

# prefix ::= algorithm ":" hex* | hex+
_PREFIX = re.compile(r"(?:sha256|sha512):[a-f0-9]*|[a-f0-9]+")


def ls(context: Context, prefixes: Sequence[str], *, quiet: bool) -> int:
    """List the blobs whose digests begin with any of the prefixes, or all; the newest first."""
    chosen = _prefixes(prefixes)
    found = (info for info in inputs.store(context).walk() if _begins(info.digest, chosen))
    blobs = sorted(found, key=lambda info: (info.committed, info.digest), reverse=True)
    if context.output == "json":
        tables.json([{"digest": str(b.digest), "size": b.size, "committed": b.committed} for b in blobs])
    elif quiet:
        tables.lines([str(b.digest) for b in blobs])
    else:
        tables.columns(("DIGEST", "SIZE", "AGE"), [(str(b.digest), size(b.size), tables.age(b.committed)) for b in blobs])
    return 0


def get(context: Context, digest: str) -> int:
    """Write a blob to standard output."""
    for piece in inputs.store(context).chunks(inputs.digest(digest)):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return 0


def active(context: Context, *, quiet: bool) -> int:
    """List the ingests, by their keys; the age is that of the last write."""
    found = sorted(inputs.store(context).active(), key=lambda status: status.ref)
    if context.output == "json":
        tables.json(
            [
                {
                    "ref": status.ref,
                    "offset": status.offset,
                    "total": status.total,
                    "expected": None if status.expected is None else str(status.expected),
                    "started": status.started,
                    "updated": status.updated,
                }
                for status in found
            ]
        )
    elif quiet:
        tables.lines([status.ref for status in found])
    else:
        rows = [(s.ref, size(s.offset), "-" if s.total is None else size(s.total), tables.age(s.updated)) for s in found]
        tables.columns(("REF", "OFFSET", "TOTAL", "AGE"), rows)
    return 0


def _prefixes(texts: Sequence[str]) -> tuple[str, ...]:
    for text in texts:
        if not _PREFIX.fullmatch(text):
            raise BadInput(f"prefix {text!r}: expected the beginning of a digest, such as sha256:0123 or 0123")
    return tuple(texts)


def _begins(digest: Digest, prefixes: tuple[str, ...]) -> bool:
    return not prefixes or str(digest).startswith(prefixes) or digest.hex.startswith(prefixes)
