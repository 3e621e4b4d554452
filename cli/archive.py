"""The commands export and import: images to and from tar archives."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.names import find_record
from prefect_dist.cli.options import Context, Shared
from prefect_dist.cli.output import print_error
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.ocispec.units import format_count

if TYPE_CHECKING:
    from prefect_dist.storage.archive import Imported

_STREAM = "-"


def _refuse_options(_: object, value: str | list[str]) -> None:
    for text in [value] if isinstance(value, str) else value:
        if text.startswith("-") and text != _STREAM:
            raise ValueError(f"unknown option {text}")


def _file(name: str, help: str) -> Parameter:  # noqa: A002 - as cyclopts names it
    """Return a parameter for a file. Only `-`, standard input or output, may begin with a hyphen."""
    return Parameter(name=name, allow_leading_hyphen=True, validator=_refuse_options, help=help)


def export(
    names_and_file: Annotated[
        list[str], _file("NAME FILE", "Names in the content store, and last the archive to write (- is standard output).")
    ],
    /,
    *,
    context: Shared,
) -> int:
    """Write images with referrers to an archive, and print the images. An incomplete archive never replaces a file."""
    from prefect_dist.storage.archive import Imported, export_images

    *wanted, file = names_and_file
    if not wanted:
        raise BadInput(f"export: expected NAME... FILE, got only {file!r}; the file comes last, - is standard output")
    store = inputs.open_store(context)
    with _open_output(file) as stream:
        exported = export_images(store, [find_record(store, text).name for text in wanted], stream)
    if file != _STREAM:
        done = [Imported(name=one.name, descriptor=one.descriptor, referrers=len(one.referrers)) for one in exported]
        _show(context, done)
    if count := sum(len(name.referrers) for name in exported):
        print_error(f"the archive also has {format_count(count, 'referrer')}, which docker load ignores")
    return 0


def import_(
    file: Annotated[str, _file("FILE", "A tar archive, plain or compressed; - is standard input.")],
    /,
    *,
    name: Annotated[str | None, Parameter(help="The name for an image that has no complete name in the archive.")] = None,
    context: Shared,
) -> int:
    """Import and print the images of an archive. Return 1 if an image cannot be imported."""
    from prefect_dist.storage.archive import import_images

    default_name = None if name is None else str(inputs.parse_reference(name))
    store = inputs.open_store(context)
    source = "standard input" if file == _STREAM else file
    with _open_input(file) as stream:
        outcomes = import_images(store, stream, source=source, name=default_name)
    _show(context, outcomes)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    for error in errors:
        print_error(error)
    return 1 if errors else 0


def _show(context: Context, outcomes: Sequence["Imported"]) -> None:
    if context.output == "json":
        output.print_json([_outcome_json(outcome) for outcome in outcomes])
    else:
        done = [(o.name, str(o.descriptor.digest)) for o in outcomes if o.name and o.descriptor and o.error is None]
        output.print_columns(("NAME", "DIGEST"), done)


def _outcome_json(outcome: "Imported") -> dict[str, str | int | None]:
    return {
        "name": outcome.name,
        "digest": None if outcome.descriptor is None else str(outcome.descriptor.digest),
        "referrers": outcome.referrers,
        "error": None if outcome.error is None else str(outcome.error),
    }


@contextmanager
def _open_output(file: str) -> Iterator[IO[bytes]]:
    if file == _STREAM:
        if sys.stdout.isatty():
            raise BadInput("export: standard output is a terminal; name a file, or redirect the output")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    from prefect_dist.storage.archive.replacing import replace_file

    path = Path(file).resolve()  # a symbolic link is kept
    is_special = path.exists() and not path.is_file()  # a device or pipe is written directly
    try:
        with path.open("wb") if is_special else replace_file(path) as stream:
            yield stream
    except OSError as exc:
        raise Unavailable(f"{file}: {exc.strerror or exc}") from exc


@contextmanager
def _open_input(file: str) -> Iterator[IO[bytes]]:
    if file == _STREAM:
        if sys.stdin.isatty():
            raise BadInput("import: standard input is a terminal; name a file, or redirect an archive to the input")
        yield sys.stdin.buffer
        return
    try:
        with Path(file).open("rb") as stream:
            yield stream
    except OSError as exc:
        raise Unavailable(f"{file}: {exc.strerror or exc}") from exc
