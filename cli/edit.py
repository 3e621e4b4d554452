"""The command edit: a blob through an editor. The result is a new blob, since content is named by its digest."""

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

from prefect_dist.cli import inputs, tables
from prefect_dist.cli.context import Context
from prefect_dist.cli.errors import BadInput, tell
from prefect_dist.ocispec import Digest, manifest
from prefect_dist.ocispec.errors import AlreadyExists, DistError, InvalidInput
from prefect_dist.storage import ContentStore

_PIECE_BYTES = 1024 * 1024


def edit(context: Context, digest: str, *, editor: str | None, validate: bool) -> int:
    """Edit a copy of a blob, ingest it and print its digest. If that fails, the edited copy is kept and named."""
    original, argv = inputs.digest(digest), _argv(editor)
    store = inputs.store(context)
    copy = _copy(store, original)
    with _kept(copy):
        _edit(argv, copy)
        if validate:
            _validate(copy)
        edited = _ingest(store, copy, original)
    copy.unlink()
    if context.output == "json":
        tables.json({"digest": str(edited), "changed": edited != original})
    else:
        tables.lines([str(edited)])
    if edited == original:
        tell(f"blob {original}: unchanged")
    return 0


def _argv(editor: str | None) -> list[str]:
    command = editor or os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        argv = shlex.split(command)
    except ValueError as exc:
        raise BadInput(f"editor {command!r}: {exc}") from exc
    if not argv:
        raise BadInput("editor: none is set, say which with --editor or $EDITOR")
    if shutil.which(argv[0]) is None:
        raise BadInput(f"editor {command!r}: there is no command {argv[0]!r}")
    return argv


def _copy(store: ContentStore, digest: Digest) -> Path:
    """A file of this user alone with the content of a blob."""
    with tempfile.NamedTemporaryFile("wb", prefix=f"dist-edit-{digest.hex[:12]}-", delete=False) as file:
        path = Path(file.name)
        try:
            file.writelines(store.chunks(digest))
        except BaseException:
            path.unlink()
            raise
    return path


@contextmanager
def _kept(copy: Path) -> Iterator[None]:
    """Have every error say where the copy is that was edited."""
    try:
        yield
    except DistError as exc:
        raise type(exc)(f"{exc}; the edited copy is kept in {copy}") from exc
    except BaseException:
        tell(f"the edited copy is kept in {copy}")
        raise


def _edit(argv: Sequence[str], copy: Path) -> None:
    """Let a person edit. Ctrl-C is the editor's then, and it shows itself on standard error: our output may be piped on."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which the editor would inherit
    try:
        done = subprocess.run([*argv, copy], stdout=sys.stderr, check=False)  # noqa: S603 - the user's own choice
    finally:
        signal.signal(signal.SIGINT, before)
    if done.returncode:
        raise InvalidInput(f"editor {shlex.join(argv)}: it ended with {done.returncode}, nothing was ingested")


def _validate(copy: Path) -> None:
    at = "edited copy"
    if (size := copy.stat().st_size) > manifest.MAX_BYTES:
        raise InvalidInput(f"{at}: expected a manifest of at most {manifest.MAX_BYTES} bytes, got {size}")
    raw = copy.read_bytes()
    manifest.children(raw, manifest.media_type_of(raw, at=at), at=at)


def _ingest(store: ContentStore, copy: Path, original: Digest) -> Digest:
    with copy.open("rb") as file:
        edited = Digest(original.algorithm, hashlib.file_digest(file, original.algorithm).hexdigest())
        file.seek(0)
        with suppress(AlreadyExists), store.writer(f"edit {edited}", expected=edited, total=copy.stat().st_size) as writer:
            writer.truncate()  # of what an edit left that was ended here
            while piece := file.read(_PIECE_BYTES):
                writer.write(piece)
            writer.commit()
    return edited
