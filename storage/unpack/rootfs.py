"""Applies layers in order to a directory and so builds a root file system (image-spec 1.1, layer.md, "Applying Changesets").

This module decides which files an entry replaces, which files a whiteout hides, and which attributes an inode gets.
`storage.unpack.tree` confines every change to the root.

Three rules follow umoci. A parent directory without an entry belongs to root and has mode 0755. A directory keeps the times of
its entry when files are added. An empty file replaces a device if the device cannot be created.
"""

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.storage.errors import translate_errors
from prefect_dist.storage.unpack.entries import Attributes, Kind, LayerEntry, read_entries
from prefect_dist.storage.unpack.inodes import Restorer
from prefect_dist.storage.unpack.layers import LayerStream
from prefect_dist.storage.unpack.nametree import NameNode
from prefect_dist.storage.unpack.tree import Cursor, TreePath, remove, unchanged_times

_log = logging.getLogger(__name__)
_WHITEOUT, _METADATA, _OPAQUE = b".wh.", b".wh..wh.", b".wh..wh..opq"
_NO_NAMES = (b"", b".", b"..")
_DEVICES: dict[Kind, int] = {"character": stat.S_IFCHR, "block": stat.S_IFBLK}
_OWNER_MAY_ALL = 0o700
_NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT: TreePath = ()
# The limit for parent directories that no entry describes. Each needs an inode, and one entry can create 255 of them.
_UNDESCRIBED, _UNDESCRIBED_EARNED = 100_000, 4


class Rootfs:
    """Turns an empty directory, open as `root`, into a root file system. No other process may change the directory meanwhile.

    Until `finish`, the owner may enter and change every directory, and other users cannot enter the root.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._privileged = os.geteuid() == 0
        self._inodes = Restorer(privileged=self._privileged)
        # Paths, without links, that the current layer has created or walked through. Its own whiteouts do not hide them.
        self._upper = NameNode()
        # The final modes of directories whose owner could not work in them with that mode.
        self._modes = NameNode()
        self._undescribed_left = _UNDESCRIBED
        self._restore(root, Attributes(), "directory", path=_ROOT)

    def apply(self, layer: LayerStream) -> None:
        """Apply the entries of a layer.

        Raises:
            Corrupt, InvalidInput, Unsupported: a bad layer, see `read_entries`; or a link without a target or in a cycle.
            StoreFull, Denied, Unavailable: the disk.
        """
        self._upper = NameNode()
        for entry in read_entries(layer):
            with _name_entry_in_errors(f"{layer}: {entry}"):
                self._apply(entry, layer)

    def finish(self) -> None:
        """Set the final modes of directories, subdirectories before their parents."""
        with translate_errors("modes of directories"), Cursor(self._root) as here:
            pending = [list(self._modes.children.items())]
            while pending:
                if pending[-1]:
                    name, node = pending[-1].pop()
                    with suppress(FileNotFoundError, NotADirectoryError):
                        here.enter(name)
                        pending.append(list(node.children.items()))
                    continue
                pending.pop()
                self._leave_with_mode(here)

    def _leave_with_mode(self, here: Cursor) -> None:
        """Leave a directory, then set its mode. The mode may forbid leaving the directory or entering subdirectories."""
        node = self._modes.find(here.path)
        if not here.path:
            os.chmod(self._root, _OWNER_MAY_ALL if node is None or node.mode is None else node.mode)  # noqa: PTH101 - a handle
            return
        name = here.path[-1]
        here.leave()
        if node is not None and node.mode is not None:
            os.chmod(name, node.mode, dir_fd=here.handle)

    def _apply(self, entry: LayerEntry, content: LayerStream) -> None:
        if not entry.path:
            self._restore(self._root, entry.attributes, "directory", path=_ROOT)
            return
        self._undescribed_left += _UNDESCRIBED_EARNED
        *parents, name = entry.path
        if _is_aufs_metadata(name, parents):
            return
        with Cursor(self._root) as here:
            if name.startswith(_WHITEOUT):
                self._apply_whiteout(here, tuple(parents), name)
            else:
                here.follow(tuple(parents), make=self._make_parent)
                with unchanged_times(here.handle):
                    self._put(here, name, entry, content)
                self._upper.add((*here.path, name))

    def _put(self, here: Cursor, name: bytes, entry: LayerEntry, content: LayerStream) -> None:
        """Create the file of an entry. An existing file is replaced, except a directory by a directory."""
        there = here.status(name)
        stays = there is not None and stat.S_ISDIR(there.st_mode) and entry.kind == "directory"
        if there and not stays:
            self._remove(here, name)
        if entry.kind == "link":
            self._make_link(here, name, entry.source)
            return
        if not stays:
            self._make(here, name, entry, content)
        self._restore_named(here, name, entry.attributes, entry.kind)

    def _make(self, here: Cursor, name: bytes, entry: LayerEntry, content: LayerStream) -> None:
        match entry.kind:
            case "directory":
                os.mkdir(name, _OWNER_MAY_ALL, dir_fd=here.handle)
            case "symlink":
                os.symlink(entry.target, name, dir_fd=here.handle)
            case "fifo":
                os.mkfifo(name, dir_fd=here.handle)
            case "character" | "block":
                self._make_device(here, name, entry)
            case _:
                _write(here, name, entry, content)

    def _make_device(self, here: Cursor, name: bytes, entry: LayerEntry) -> None:
        try:
            if self._privileged:
                os.mknod(name, _DEVICES[entry.kind], entry.device, dir_fd=here.handle)
                return
        except PermissionError:  # root, but only in a user namespace
            pass
        _log.warning("%s: creating a device needs root, created an empty file instead", entry)
        os.close(os.open(name, _NEW_FILE, 0o600, dir_fd=here.handle))

    def _make_parent(self, here: Cursor, name: bytes) -> None:
        """Create a parent directory that no entry has described so far."""
        self._undescribed_left -= 1
        if self._undescribed_left < 0:
            limit = f"{_UNDESCRIBED}, plus {_UNDESCRIBED_EARNED} for each entry"
            raise InvalidInput(f"too many directories without an entry of their own; expected at most {limit}")
        with unchanged_times(here.handle):
            os.mkdir(name, _OWNER_MAY_ALL, dir_fd=here.handle)
            self._restore_named(here, name, Attributes(), "directory")

    def _make_link(self, here: Cursor, name: bytes, source: TreePath) -> None:
        *parents, last = source
        with Cursor(self._root) as there:
            try:
                there.follow(tuple(parents))
            except (FileNotFoundError, NotADirectoryError):
                target = None
            else:
                target = there.status(last)
            if target is None or stat.S_ISDIR(target.st_mode):
                found = "missing" if target is None else "a directory"
                raise InvalidInput(f"expected a file as the target of the link, {os.fsdecode(b'/'.join(source))!r} is {found}")
            os.link(last, name, src_dir_fd=there.handle, dst_dir_fd=here.handle, follow_symlinks=False)

    def _apply_whiteout(self, here: Cursor, parents: TreePath, whiteout: bytes) -> None:
        """Remove the file that a whiteout hides, or with an opaque whiteout every file of lower layers in a directory."""
        try:
            here.follow(parents)
        except (FileNotFoundError, NotADirectoryError):
            return  # the directory is missing, so there is nothing to hide
        if whiteout == _OPAQUE:
            self._clear(here, self._upper.find(here.path))
            return
        if (name := whiteout.removeprefix(_WHITEOUT)) in _NO_NAMES:
            raise InvalidInput("expected the name of a file after the prefix .wh., got none")
        if (there := here.status(name)) is None:
            return
        if (node := self._upper.find((*here.path, name))) is None:
            with unchanged_times(here.handle):
                self._remove(here, name)
        elif stat.S_ISDIR(there.st_mode):
            here.enter(name)
            self._clear(here, node)

    def _clear(self, here: Cursor, node: NameNode | None) -> None:
        """Remove the files of lower layers below a directory, but not those of the current layer."""
        pending = [self._clear_directory(here, node)]
        while pending:
            if pending[-1]:
                name, inner = pending[-1].pop()
                here.enter(name)
                pending.append(self._clear_directory(here, inner))
            else:
                pending.pop()
                if pending:
                    here.leave()

    def _clear_directory(self, here: Cursor, node: NameNode | None) -> list[tuple[bytes, NameNode]]:
        """Remove the files of lower layers in one directory, and return the subdirectories that must be cleared, too.

        A directory of the current layer is cleared only once, since files of lower layers cannot appear later.
        """
        uncleared: list[tuple[bytes, NameNode]] = []
        if node is not None and node.is_cleared:
            return uncleared
        with unchanged_times(here.handle):
            for name in here.children():
                inner = node.children.get(name) if node is not None else None
                if inner is None:
                    self._remove(here, name)
                elif not inner.is_cleared and (there := here.status(name)) and stat.S_ISDIR(there.st_mode):
                    uncleared.append((name, inner))
        if node is not None:
            node.is_cleared = True
        return uncleared

    def _remove(self, here: Cursor, name: bytes) -> None:
        """Remove a file by name, and the remembered modes of the file and below."""
        remove(name, within=here.handle)
        self._modes.drop((*here.path, name))

    def _restore_named(self, here: Cursor, name: bytes, attributes: Attributes, kind: Kind) -> None:
        handle = os.open(name, _NODE, dir_fd=here.handle)
        try:
            self._restore(handle, attributes, kind, path=(*here.path, name))
        finally:
            os.close(handle)

    def _restore(self, handle: int, attributes: Attributes, kind: Kind, *, path: TreePath) -> None:
        mode = self._interim_mode(attributes.mode, path=path) if kind == "directory" else attributes.mode
        self._inodes.restore(handle, attributes, mode=None if kind == "symlink" else mode)

    def _interim_mode(self, mode: int, *, path: TreePath) -> int:
        """Return the mode of a directory until `finish`, and remember the final mode if it differs."""
        if path and mode & _OWNER_MAY_ALL == _OWNER_MAY_ALL:
            if (node := self._modes.find(path)) is not None:
                node.mode = None
            return mode
        self._modes.add(path).mode = mode
        return mode | _OWNER_MAY_ALL if path else _OWNER_MAY_ALL


def _is_aufs_metadata(name: bytes, parents: Iterable[bytes]) -> bool:
    return any(part.startswith(_METADATA) for part in (*parents, name)) and name != _OPAQUE


@contextmanager
def _name_entry_in_errors(what: str) -> Iterator[None]:
    """Add the entry and the layer to the messages of errors in this block."""
    with translate_errors(what):
        try:
            yield
        except InvalidInput as exc:
            raise InvalidInput(f"{exc}", subject=what) from exc


def _write(here: Cursor, name: bytes, entry: LayerEntry, content: LayerStream) -> None:
    """Create a file with the content and the holes of the entry."""
    with os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=here.handle), "wb") as file:
        for offset, size in entry.extents:
            file.seek(offset)
            file.writelines(content.pieces(size))
        if file.tell() != entry.size:
            file.truncate(entry.size)
