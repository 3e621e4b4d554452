"""The commands export and import: images from and to tar archives."""

import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prefect_dist.cli import inputs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import BadInput, tell
from prefect_dist.cli.names import find_record
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.ocispec.units import format_count
from prefect_dist.storage.archive import Imported, export_images, import_images

_STREAM = "-"


def export(context: Context, arguments: Sequence[str]) -> int:
    """Write images and their referrers to an archive, which appears whole or not at all; list them if it is a file."""
    *wanted, file = arguments
    if not wanted:
        raise BadInput(f"export: expected NAME... FILE, got {file!r} alone (the file comes last, - is standard output)")
    store = inputs.store(context)
    with _output(file) as stream:
        exported = export_images(store, [find_record(store, text).name for text in wanted], stream)
    if file != _STREAM:
        done = [Imported(name=one.name, descriptor=one.descriptor, referrers=len(one.referrers)) for one in exported]
        _show(context, done)
    if count := sum(len(name.referrers) for name in exported):
        tell(f"with {format_count(count, 'referrer')}, for readers of OCI layouts; docker load does not read them")
    return 0


def import_(context: Context, file: str, *, name: str | None) -> int:
    """Bring an archive's images into the store and list them; 1 if any could not be had."""
    called = None if name is None else str(inputs.reference(name))
    store = inputs.store(context)
    source = "standard input" if file == _STREAM else file
    with _input(file) as stream:
        outcomes = import_images(store, stream, source=source, name=called)
    _show(context, outcomes)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    for error in errors:
        tell(error)
    return 1 if errors else 0


def _show(context: Context, outcomes: Sequence[Imported]) -> None:
    if context.output == "json":
        tables.json([_outcome_json(outcome) for outcome in outcomes])
    else:
        done = [(o.name, str(o.descriptor.digest)) for o in outcomes if o.name and o.descriptor and o.error is None]
        tables.columns(("NAME", "DIGEST"), done)


def _outcome_json(outcome: Imported) -> dict[str, str | int | None]:
    return {
        "name": outcome.name,
        "digest": None if outcome.descriptor is None else str(outcome.descriptor.digest),
        "referrers": outcome.referrers,
        "error": None if outcome.error is None else str(outcome.error),
    }


@contextmanager
def _output(file: str) -> Iterator[IO[bytes]]:
    if file == _STREAM:
        if sys.stdout.isatty():
            raise BadInput("export: standard output is a terminal; name a file, or pipe it on")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with _replace_file(Path(file).resolve()) as stream:  # a link stays one
            yield stream
    except OSError as exc:
        raise Unavailable(f"{file}: {exc.strerror or exc}") from exc


@contextmanager
def _replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is whole. What is no file, such as a device, is written to itself."""
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _input(file: str) -> Iterator[IO[bytes]]:
    if file == _STREAM:
        if sys.stdin.isatty():
            raise BadInput("import: standard input is a terminal; name a file, or pipe an archive in")
        yield sys.stdin.buffer
        return
    try:
        with Path(file).open("rb") as stream:
            yield stream
    except OSError as exc:
        raise Unavailable(f"{file}: {exc.strerror or exc}") from exc
