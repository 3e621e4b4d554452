"""The command edit: opens a copy of a blob in an editor, and stores the result as a new blob."""

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.options import BlobDigest, Shared, option
from prefect_dist.cli.output import print_error
from prefect_dist.ocispec import Digest, manifest
from prefect_dist.ocispec.errors import AlreadyExists, DistError, InvalidInput

if TYPE_CHECKING:
    from prefect_dist.storage import ContentStore

_PIECE_BYTES = 1024 * 1024


def edit(
    digest: BlobDigest,
    /,
    *,
    editor: Annotated[str | None, Parameter(help="Command with arguments. Default: $VISUAL, then $EDITOR.")] = None,
    validate: Annotated[bool, option("Refuse a result that is not a manifest or index.")] = False,
    context: Shared,
) -> int:
    """Edit a copy of a blob, ingest the copy, and print the digest. After an error, the edited copy is kept and named."""
    original, argv = inputs.parse_digest(digest), _find_editor(editor)
    store = inputs.open_store(context)
    copy = _copy(store, original)
    with _name_copy_in_errors(copy):
        _run_editor(argv, copy)
        if validate:
            _validate(copy)
        edited = _ingest(store, copy, original)
    copy.unlink()
    if context.output == "json":
        output.print_json({"digest": str(edited), "changed": edited != original})
    else:
        output.print_lines([str(edited)])
    if edited == original:
        print_error(f"blob {original}: unchanged")
    return 0


def _find_editor(editor: str | None) -> list[str]:
    command = editor or os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        argv = shlex.split(command)
    except ValueError as exc:
        raise BadInput(f"editor {command!r}: {exc}") from exc
    if not argv:
        raise BadInput("editor: not set; use --editor or $EDITOR")
    if shutil.which(argv[0]) is None:
        raise BadInput(f"editor {command!r}: command {argv[0]!r} not found")
    return argv


def _copy(store: "ContentStore", digest: Digest) -> Path:
    """Return a file with the content of a blob. Only this user can read the file."""
    with tempfile.NamedTemporaryFile("wb", prefix=f"dist-edit-{digest.hex[:12]}-", delete=False) as file:
        path = Path(file.name)
        try:
            file.writelines(store.chunks(digest))
        except BaseException:
            path.unlink()
            raise
    return path


@contextmanager
def _name_copy_in_errors(copy: Path) -> Iterator[None]:
    try:
        yield
    except DistError as exc:
        raise type(exc)(f"{exc}; the edited copy is kept in {copy}") from exc
    except BaseException:
        print_error(f"the edited copy is kept in {copy}")
        raise


def _run_editor(argv: Sequence[str], copy: Path) -> None:
    """Run the editor on the copy. The editor uses standard error, since standard output may be a pipe."""
    # Ctrl-C is for the editor only. The handler is not SIG_IGN, which the editor would inherit.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        done = subprocess.run([*argv, copy], stdout=sys.stderr, check=False)  # noqa: S603 - the user chose the command
    finally:
        signal.signal(signal.SIGINT, before)
    if done.returncode:
        raise InvalidInput(f"editor {shlex.join(argv)}: exit code {done.returncode}; the copy was not ingested")


def _validate(copy: Path) -> None:
    at = "edited copy"
    if (size := copy.stat().st_size) > manifest.MAX_BYTES:
        raise InvalidInput(f"{at}: expected a manifest of at most {manifest.MAX_BYTES} bytes, got {size}")
    raw = copy.read_bytes()
    manifest.children(raw, manifest.media_type_of(raw, at=at), at=at)


def _ingest(store: "ContentStore", copy: Path, original: Digest) -> Digest:
    with copy.open("rb") as file:
        edited = Digest(original.algorithm, hashlib.file_digest(file, original.algorithm).hexdigest())
        file.seek(0)
        with suppress(AlreadyExists), store.writer(f"edit {edited}", expected=edited, total=copy.stat().st_size) as writer:
            writer.truncate()  # discard the bytes of an interrupted edit
            while piece := file.read(_PIECE_BYTES):
                writer.write(piece)
            writer.commit()
    return edited
