"""Images whose layers a test writes entry by entry, file trees as values, and work under another user ID."""

import gzip
import io
import json
import os
import pickle
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import zstandard

from prefect_dist.ocispec import Descriptor, Digest, Platform
from prefect_dist.storage import ContentStore, open_store
from tests import images
from tests.peers.processes import PATIENCE_S, require
from tests.storage.conformance import ingest

AMD64 = Platform.parse("linux/amd64")
NOBODY = 65534
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
T = TypeVar("T")
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "+gzip": lambda data: gzip.compress(data, mtime=0),
    "+zstd": zstandard.compress,
}


class UmociError(RuntimeError):
    """umoci failed. The message is its stderr."""


class Member(NamedTuple):
    """An entry of a tar archive and its content."""

    header: tarfile.TarInfo
    content: bytes = b""


def member(name: str, kind: bytes, content: bytes = b"", *, xattrs: dict[str, bytes] | None = None, **header: Any) -> Member:
    """Return an entry of any type. `header` sets fields of TarInfo, whose defaults are root as owner and the epoch as time."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(content), 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in (xattrs or {}).items()
    }
    for field, value in header.items():
        setattr(info, field, value)
    return Member(info, content)


def file(name: str, content: bytes = b"", **header: Any) -> Member:
    return member(name, tarfile.REGTYPE, content, **header)


def directory(name: str, **header: Any) -> Member:
    return member(name, tarfile.DIRTYPE, **header)


def symlink(name: str, target: str, **header: Any) -> Member:
    return member(name, tarfile.SYMTYPE, linkname=target, **header)


def link(name: str, source: str) -> Member:
    return member(name, tarfile.LNKTYPE, linkname=source)


def fifo(name: str, **header: Any) -> Member:
    return member(name, tarfile.FIFOTYPE, **header)


def device(name: str, kind: bytes, major: int, minor: int, **header: Any) -> Member:
    return member(name, kind, devmajor=major, devminor=minor, **header)


def whiteout(name: str) -> Member:
    """Return a whiteout that hides `name`."""
    parent, slash, last = name.rpartition("/")
    return file(f"{parent}{slash}.wh.{last}")


def opaque(name: str) -> Member:
    """Return an opaque whiteout, which hides the files of lower layers in a directory."""
    return file(f"{name}/.wh..wh..opq" if name else ".wh..wh..opq")


def tar(*members: Member, layout: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar archive of these entries."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=layout, errors="surrogateescape") as out:
        for header, content in members:
            out.addfile(header, io.BytesIO(content))
    return archive.getvalue()


def add_content(store: ContentStore, data: bytes, media_type: str, **fields: Any) -> Descriptor:
    """Write content to the store and return its descriptor."""
    descriptor = Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data), **fields)
    if not store.holds(descriptor):
        ingest(store, data)
    return descriptor


def manifest(store: ContentStore, config: dict[str, Any], layers: Iterable[Descriptor], **fields: Any) -> Descriptor:
    """Write an image manifest to the store and return its descriptor."""
    configured = add_content(store, json.dumps(config).encode(), images.OCI_CONFIG)
    body = {
        "schemaVersion": 2,
        "mediaType": images.OCI_MANIFEST,
        "config": configured.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    return add_content(store, json.dumps(body).encode(), images.OCI_MANIFEST, **fields)


def image(store: ContentStore, *tars: bytes, suffix: str = "+gzip", architecture: str = "amd64", **fields: Any) -> Descriptor:
    """Write an image with these layers to the store, the lowest layer first, and return its descriptor."""
    layers = [add_content(store, COMPRESS[suffix](data), OCI_LAYER + suffix) for data in tars]
    diff_ids = [str(Digest.of(data)) for data in tars]
    config = {"architecture": architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    return manifest(store, config, layers, **fields)


def index(store: ContentStore, *children: Descriptor, **fields: Any) -> Descriptor:
    """Write an index of these manifests to the store and return its descriptor."""
    body = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [child.to_json() for child in children]}
    return add_content(store, json.dumps(body).encode(), images.OCI_INDEX, **fields)


def umoci_unpack(place: Path, *tars: bytes, rootless: bool = False) -> Path:
    """Return the root file system that umoci creates from these layers, below `place`.

    Raises:
        UmociError: umoci fails.
    """
    store = open_store(str(place / "umoci-store"))
    store.names.put("image", image(store, *tars), source="tests")
    store.update_index()
    bundle = place / "umoci-bundle"
    argv = [require("umoci", "umoci"), "unpack", "--image", f"{place / 'umoci-store'}:image"]
    if rootless:
        argv.append("--rootless")
        if os.geteuid() == 0:
            argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *argv]
    done = subprocess.run([*argv, str(bundle)], capture_output=True, text=True, check=False, timeout=PATIENCE_S, umask=0o22)
    if done.returncode != 0:
        raise UmociError(done.stderr)
    return bundle / "rootfs"


class Node(NamedTuple):
    """One file of a tree of any type, with every attribute that unpacking sets."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    content: bytes
    device: int
    names: frozenset[str]
    """All names of this inode."""
    xattrs: tuple[tuple[str, bytes], ...]


def tree(root: Path, *, directory_times: bool = True) -> dict[str, Node]:
    """Return every file below a directory by name; the directory itself is `.`. Names that are not UTF-8 have surrogates."""
    found = (Path(parent, name) for parent, *names in os.walk(root) for name in (*names[0], *names[1]))
    paths = {".": root, **{str(path.relative_to(root)): path for path in found}}
    inodes: dict[int, set[str]] = {}
    for name, path in paths.items():
        inodes.setdefault(path.lstat().st_ino, set()).add(name)
    return {name: _node(path, inodes[path.lstat().st_ino], directory_times=directory_times) for name, path in paths.items()}


def _node(path: Path, names: set[str], *, directory_times: bool) -> Node:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        content = os.fsencode(path.readlink())
    else:
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    xattrs = sorted(os.listxattr(path, follow_symlinks=False))
    return Node(
        mode=status.st_mode,
        owner=(status.st_uid, status.st_gid),
        mtime_ns=0 if stat.S_ISDIR(status.st_mode) and not directory_times else status.st_mtime_ns,
        content=content,
        device=status.st_rdev,
        names=frozenset(names),
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in xattrs),
    )


def as_nobody(work: Callable[[], T]) -> T:
    """Return the result of `work` in a forked process without privileges, or raise its error."""
    if os.geteuid() != 0:
        return work()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.close(reader)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with os.fdopen(writer, "wb") as answers:
                pickle.dump(_outcome(work), answers)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        outcome = pickle.load(answers)  # noqa: S301 - our own
    os.waitpid(child, 0)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome  # type: ignore[no-any-return]


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as exc:  # noqa: BLE001 - the parent process raises it again
        return exc
