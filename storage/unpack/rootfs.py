"""The root file system that layers make when they are applied in order (image-spec 1.1, layer.md, "Applying Changesets").

What an entry replaces, what a whiteout hides and what an inode gets are decided here; that nothing outside the root is
touched is `storage.unpack.tree`'s promise. As umoci does: a parent that no layer describes belongs to root and has mode 0755; a
directory's times are those of its entry, whatever is put into it; where devices cannot be made, an empty file stands in.
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
# Directories on the way to entries that no entry describes. Each costs an inode, and an entry may name 255 of them.
_UNDESCRIBED, _UNDESCRIBED_EARNED = 100_000, 4


class Rootfs:
    """An empty directory, open as `root`, that becomes a root file system. Nobody else may work in it meanwhile.

    Until `finish`, its owner may enter and change every directory, and others cannot enter its root.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._privileged = os.geteuid() == 0
        self._inodes = Restorer(privileged=self._privileged)
        # Paths, without links, that the layer in work has made or passed on the way: no whiteout of the same layer hides them.
        self._upper = NameNode()
        # The modes that directories get in the end because they cannot have them yet.
        self._modes = NameNode()
        self._undescribed_left = _UNDESCRIBED
        self._restore(root, Attributes(), "directory", path=_ROOT)

    def apply(self, layer: LayerStream) -> None:
        """Change the tree as a layer says.

        Raises:
            Corrupt, InvalidInput, Unsupported: the layer, see `read_entries`; a link that leads nowhere or in circles.
            StoreFull, Denied, Unavailable: the disk.
        """
        self._upper = NameNode()
        for entry in read_entries(layer):
            with _name_entry_in_errors(f"{layer}: {entry}"):
                self._apply(entry, layer)

    def finish(self) -> None:
        """Give directories their modes."""
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
        """Leave a directory, then give it its mode: the mode may bar the way out of it, and to what is in it."""
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
                self._hide(here, tuple(parents), name)
            else:
                here.follow(tuple(parents), make=self._make_parent)
                with unchanged_times(here.handle):
                    self._put(here, name, entry, content)
                self._upper.add((*here.path, name))

    def _put(self, here: Cursor, name: bytes, entry: LayerEntry, content: LayerStream) -> None:
        """Make what the entry says; only a directory stays where one is."""
        there = here.status(name)
        stays = there is not None and stat.S_ISDIR(there.st_mode) and entry.kind == "directory"
        if there and not stays:
            self._remove(here, name)
        if entry.kind == "link":
            self._link(here, name, entry.source)
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
        except PermissionError:  # root of a user namespace only
            pass
        _log.warning("%s: devices need root, an empty file stands in", entry)
        os.close(os.open(name, _NEW_FILE, 0o600, dir_fd=here.handle))

    def _make_parent(self, here: Cursor, name: bytes) -> None:
        """Make a directory that no entry has described so far."""
        self._undescribed_left -= 1
        if self._undescribed_left < 0:
            limit = f"{_UNDESCRIBED} of them, and {_UNDESCRIBED_EARNED} for each entry"
            raise InvalidInput(f"too many directories that no entry describes; expected at most {limit}")
        with unchanged_times(here.handle):
            os.mkdir(name, _OWNER_MAY_ALL, dir_fd=here.handle)
            self._restore_named(here, name, Attributes(), "directory")

    def _link(self, here: Cursor, name: bytes, source: TreePath) -> None:
        *parents, last = source
        with Cursor(self._root) as there:
            try:
                there.follow(tuple(parents))
            except (FileNotFoundError, NotADirectoryError):
                target = None
            else:
                target = there.status(last)
            if target is None or stat.S_ISDIR(target.st_mode):
                what = "not there" if target is None else "a directory"
                raise InvalidInput(f"expected a file to link to, {os.fsdecode(b'/'.join(source))!r} is {what}")
            os.link(last, name, src_dir_fd=there.handle, dst_dir_fd=here.handle, follow_symlinks=False)

    def _hide(self, here: Cursor, parents: TreePath, whiteout: bytes) -> None:
        """Remove what a whiteout hides: one name, or with an opaque whiteout all that lower layers have in a directory."""
        try:
            here.follow(parents)
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing there to hide
        if whiteout == _OPAQUE:
            self._clear(here, self._upper.find(here.path))
            return
        if (name := whiteout.removeprefix(_WHITEOUT)) in _NO_NAMES:
            raise InvalidInput("a whiteout without a name to hide")
        if (there := here.status(name)) is None:
            return
        if (node := self._upper.find((*here.path, name))) is None:
            with unchanged_times(here.handle):
                self._remove(here, name)
        elif stat.S_ISDIR(there.st_mode):
            here.enter(name)
            self._clear(here, node)

    def _clear(self, here: Cursor, node: NameNode | None) -> None:
        """Remove what lower layers have below a directory, but not what the layer in work has made."""
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
        """Remove what lower layers have in one directory, and return its directories that are still to be cleared.

        A directory of the layer in work is cleared once: nothing of lower layers can appear there later.
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
        """Remove what has a name in a directory, and what is known of modes below it."""
        remove(name, within=here.handle)
        self._modes.drop((*here.path, name))

    def _restore_named(self, here: Cursor, name: bytes, attributes: Attributes, kind: Kind) -> None:
        handle = os.open(name, _NODE, dir_fd=here.handle)
        try:
            self._restore(handle, attributes, kind, path=(*here.path, name))
        finally:
            os.close(handle)

    def _restore(self, handle: int, attributes: Attributes, kind: Kind, *, path: TreePath) -> None:
        mode = self._passable(attributes.mode, path=path) if kind == "directory" else attributes.mode
        self._inodes.restore(handle, attributes, mode=None if kind == "symlink" else mode)

    def _passable(self, mode: int, *, path: TreePath) -> int:
        """Return the mode that a directory has until `finish`."""
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
    """Name the entry and its layer in errors of this block."""
    with translate_errors(what):
        try:
            yield
        except InvalidInput as exc:
            raise InvalidInput(f"{what}: {exc}") from exc


def _write(here: Cursor, name: bytes, entry: LayerEntry, content: LayerStream) -> None:
    """Make a file of the entry's content; where it has holes, the file has them, too."""
    with os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=here.handle), "wb") as file:
        for offset, size in entry.extents:
            file.seek(offset)
            file.writelines(content.pieces(size))
        if file.tell() != entry.size:
            file.truncate(entry.size)
