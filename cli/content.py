"""The commands ls, get and active show the content of a store."""

import re
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.options import BlobDigest, Shared, option
from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.units import size

# prefix ::= algorithm ":" hex* | hex+
_PREFIX = re.compile(r"(?:sha256|sha512):[a-f0-9]*|[a-f0-9]+")


def ls(
    prefixes: Annotated[
        list[str] | None,
        Parameter(name="PREFIX", help="List only digests that begin with a prefix, such as sha256:0123 or 0123."),
    ] = None,
    /,
    *,
    quiet: Annotated[bool, option("Print only the digests.", name=["--quiet", "-q"])] = False,
    context: Shared,
) -> int:
    """Print the blobs whose digests begin with one of the prefixes, the newest first. Without prefixes, print all blobs."""
    chosen = _check_prefixes(prefixes or ())
    found = (info for info in inputs.open_store(context).walk() if _has_prefix(info.digest, chosen))
    blobs = sorted(found, key=lambda info: (info.committed, info.digest), reverse=True)
    if context.output == "json":
        output.print_json([{"digest": str(b.digest), "size": b.size, "committed": b.committed} for b in blobs])
    elif quiet:
        output.print_lines([str(b.digest) for b in blobs])
    else:
        output.print_columns(
            ("DIGEST", "SIZE", "AGE"), [(str(b.digest), size(b.size), output.format_age(b.committed)) for b in blobs]
        )
    return 0


def get(digest: BlobDigest, /, *, context: Shared) -> int:
    """Write a blob to standard output."""
    for piece in inputs.open_store(context).chunks(inputs.parse_digest(digest)):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return 0


def active(
    *,
    quiet: Annotated[bool, option("Print only the keys.", name=["--quiet", "-q"])] = False,
    context: Shared,
) -> int:
    """Print the ingests, sorted by key. The age is the time since the last write."""
    found = sorted(inputs.open_store(context).active(), key=lambda status: status.ref)
    if context.output == "json":
        output.print_json(
            [
                {
                    "key": status.ref,
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
        output.print_lines([status.ref for status in found])
    else:
        rows = [(s.ref, size(s.offset), "-" if s.total is None else size(s.total), output.format_age(s.updated)) for s in found]
        output.print_columns(("KEY", "OFFSET", "TOTAL", "AGE"), rows)
    return 0


def _check_prefixes(texts: Sequence[str]) -> tuple[str, ...]:
    for text in texts:
        if not _PREFIX.fullmatch(text):
            raise BadInput(f"prefix {text!r}: expected the beginning of a digest, such as sha256:0123 or 0123")
    return tuple(texts)


def _has_prefix(digest: Digest, prefixes: tuple[str, ...]) -> bool:
    return not prefixes or str(digest).startswith(prefixes) or digest.hex.startswith(prefixes)
