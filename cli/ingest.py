"""The command ingest: standard input into the content store."""

import os
import select
import sys
from collections.abc import Iterator

from prefect_dist.cli import inputs, tables
from prefect_dist.cli.context import Context
from prefect_dist.ocispec import Digest, Hasher
from prefect_dist.ocispec.errors import AlreadyExists, Corrupt, InvalidInput, NotFound
from prefect_dist.ocispec.units import format_count
from prefect_dist.storage import ContentStore, Status, Writer

_PIECE_BYTES = 1024 * 1024
# A signal that comes just before a read begins does not end it: it is heard when Python has its turn again.
_LOOK_S = 0.5


def ingest(context: Context, key: str, *, expected_size: int | None, expected_digest: str | None, resume: bool | None) -> int:
    """Ingest standard input and print its digest. Content that exists is success, and is not read."""
    ref = inputs.key(key)
    wanted = None if expected_digest is None else inputs.digest(expected_digest)
    with inputs.store(context) as store:
        digest = _find_existing(store, wanted, expected_size) or _ingest(store, ref, wanted, total=expected_size, resume=resume)
    if context.output == "json":
        tables.json({"digest": str(digest)})
    else:
        tables.lines([str(digest)])
    return 0


def _find_existing(store: ContentStore, wanted: Digest | None, total: int | None) -> Digest | None:
    """`wanted`, if the store has it."""
    if wanted is None:
        return None
    try:
        size = store.info(wanted).size
    except NotFound:
        return None
    if total is not None and total != size:
        raise InvalidInput(f"{wanted}: expected {total} bytes, but it is in the store and has {size}")
    return wanted


def _ingest(store: ContentStore, ref: str, wanted: Digest | None, *, total: int | None, resume: bool | None) -> Digest:
    left = None if resume is False else _left(store, ref, wanted, resume=resume)
    # What was declared then, or the store would take it for other content and start over.
    expected, size = (wanted, total) if left is None else (left.expected, left.total)
    try:
        with store.writer(ref, expected=expected, total=size) as writer:
            if resume is False:
                writer.truncate()
            return _take(writer, wanted, total=total)
    except AlreadyExists:
        if expected is None:
            raise
        return expected
    except Corrupt as exc:
        raise Corrupt(f"{exc}; what came is kept: go on with --resume or drop it, --no-resume") from exc


def _left(store: ContentStore, ref: str, wanted: Digest | None, *, resume: bool | None) -> Status | None:
    """What an interrupted ingest left that is to be gone on with."""
    try:
        left = store.status(ref)
    except NotFound:
        return None
    if not left.offset:
        return None
    if not resume:
        there = f"{left.offset} of {'?' if left.total is None else left.total} bytes are there"
        raise InvalidInput(f"ingest {ref}: {there}; go on with --resume or drop them, --no-resume")
    if wanted is not None and left.expected not in (None, wanted):
        raise InvalidInput(f"ingest {ref}: it was begun for {left.expected}, not for {wanted}; drop it, --no-resume")
    return left


def _take(writer: Writer, wanted: Digest | None, *, total: int | None) -> Digest:
    if writer.offset:
        read = _go_on(writer)
        return writer.commit(size=total, expected=wanted or read)
    for piece in _standard_input():
        writer.write(piece)
    return writer.commit(size=total, expected=wanted)


def _go_on(writer: Writer) -> Digest:
    """Resume an ingest: compare the input with the bytes that are there, write the rest, and return the digest of all input."""
    ref, there, known = writer.declaration.ref, writer.offset, writer.digest
    hasher, ahead = Hasher(known.algorithm), there
    for piece in _standard_input():
        before, after = piece[:ahead], piece[ahead:]
        hasher.update(before)
        ahead -= len(before)
        if not ahead and writer.offset == there and hasher.digest() != known:
            raise Corrupt(
                f"{ref}: expected content that begins with the {format_count(there, 'byte')} that are there, got other content"
            )
        hasher.update(after)
        writer.write(after)
    if ahead:
        raise Corrupt(f"{ref}: expected the whole content, but it ends {format_count(ahead, 'byte')} before what is there")
    return hasher.digest()


def _standard_input() -> Iterator[memoryview]:
    """What comes, as it comes: an interrupt finds little that was read and not yet written."""
    source = sys.stdin.fileno()
    while True:
        while not select.select([source], [], [], _LOOK_S)[0]:
            pass
        if not (piece := os.read(source, _PIECE_BYTES)):
            return
        yield memoryview(piece)
