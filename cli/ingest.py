"""The command ingest: standard input to the content store."""

import os
import select
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.options import Shared, integer
from prefect_dist.ocispec import Digest, Hasher
from prefect_dist.ocispec.errors import AlreadyExists, Corrupt, InvalidInput, NotFound
from prefect_dist.ocispec.units import format_count

if TYPE_CHECKING:
    from prefect_dist.storage import ContentStore, Status, Writer

_PIECE_BYTES = 1024 * 1024
# A signal just before a read does not interrupt the read. Python handles the signal when this time has passed.
_POLL_S = 0.5


def ingest(
    key: Annotated[str, Parameter(name="KEY", help="A name for the ingest while it is in flight; resume by the same key.")],
    /,
    *,
    expected_size: Annotated[int | None, integer("Expected number of bytes.", lowest=0)] = None,
    expected_digest: Annotated[str | None, Parameter(help="Expected digest of the content.")] = None,
    resume: Annotated[
        bool | None,
        Parameter(help="Continue (--resume) or discard (--no-resume) an interrupted ingest. Default: fail if there is one."),
    ] = None,
    context: Shared,
) -> int:
    """Ingest standard input, and print the digest. If the store has the expected digest, standard input is not read."""
    ref = inputs.check_key(key)
    wanted = None if expected_digest is None else inputs.parse_digest(expected_digest)
    with inputs.open_store(context) as store:
        digest = _find_existing(store, wanted, expected_size) or _ingest(store, ref, wanted, total=expected_size, resume=resume)
    if context.output == "json":
        output.print_json({"digest": str(digest)})
    else:
        output.print_lines([str(digest)])
    return 0


def _find_existing(store: "ContentStore", wanted: Digest | None, total: int | None) -> Digest | None:
    """Return `wanted` if the store has the blob, or None."""
    if wanted is None:
        return None
    try:
        size = store.info(wanted).size
    except NotFound:
        return None
    if total is not None and total != size:
        raise InvalidInput(f"{wanted}: expected {total} bytes, but the blob in the store has {size}")
    return wanted


def _ingest(store: "ContentStore", ref: str, wanted: Digest | None, *, total: int | None, resume: bool | None) -> Digest:
    partial = None if resume is False else _find_partial(store, ref, wanted, resume=resume)
    # An ingest is resumed only with the declaration of its first writer.
    expected, size = (wanted, total) if partial is None else (partial.expected, partial.total)
    try:
        with store.writer(ref, expected=expected, total=size) as writer:
            if resume is False:
                writer.truncate()
            return _write_input(writer, wanted, total=total)
    except AlreadyExists:
        if expected is None:
            raise
        return expected
    except Corrupt as exc:
        raise Corrupt(f"{exc}; the received bytes are kept: continue with --resume, or discard them with --no-resume") from exc


def _find_partial(store: "ContentStore", ref: str, wanted: Digest | None, *, resume: bool | None) -> "Status | None":
    """Return the status of the interrupted ingest to resume, or None.

    Raises:
        InvalidInput: an interrupted ingest exists, and the user did not ask to resume it, or expects another digest.
    """
    try:
        partial = store.status(ref)
    except NotFound:
        return None
    if not partial.offset:
        return None
    if not resume:
        progress = f"interrupted after {partial.offset} of {'?' if partial.total is None else partial.total} bytes"
        raise InvalidInput(f"ingest {ref}: {progress}; continue with --resume, or discard them with --no-resume")
    if wanted is not None and partial.expected not in (None, wanted):
        raise InvalidInput(
            f"ingest {ref}: expected digest {wanted}, but it was started for {partial.expected}; discard it with --no-resume"
        )
    return partial


def _write_input(writer: "Writer", wanted: Digest | None, *, total: int | None) -> Digest:
    if writer.offset:
        read = _resume(writer)
        return writer.commit(size=total, expected=wanted or read)
    for piece in _read_stdin():
        writer.write(piece)
    return writer.commit(size=total, expected=wanted)


def _resume(writer: "Writer") -> Digest:
    """Compare the input with the existing bytes, write the rest, and return the digest of the whole input."""
    ref, existing, known = writer.declaration.ref, writer.offset, writer.digest
    hasher, ahead = Hasher(known.algorithm), existing
    for piece in _read_stdin():
        before, after = piece[:ahead], piece[ahead:]
        hasher.update(before)
        ahead -= len(before)
        if not ahead and writer.offset == existing and hasher.digest() != known:
            count = format_count(existing, "byte")
            raise Corrupt(f"{ref}: expected input that begins with the {count} in the store, got other content")
        hasher.update(after)
        writer.write(after)
    if ahead:
        count = format_count(ahead, "byte")
        raise Corrupt(f"{ref}: expected the whole content, but standard input is {count} shorter than the part in the store")
    return hasher.digest()


def _read_stdin() -> Iterator[memoryview]:
    """Yield bytes as soon as they arrive, so that an interrupt loses few bytes."""
    source = sys.stdin.fileno()
    while True:
        while not select.select([source], [], [], _POLL_S)[0]:
            pass
        if not (piece := os.read(source, _PIECE_BYTES)):
            return
        yield memoryview(piece)
