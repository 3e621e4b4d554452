"""One small file at a path or URL that runs keep beside a store: replaced whole, changed by one process at a time."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from storage.backend import open_backend


class StateFile:
    """The file. `options` are fsspec's for where it is."""

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        place, _, self._name = url.rpartition("/")
        self._backend, _, layout = open_backend(place or "/", options or {})
        self._path = f"{layout.root}/{self._name}"

    def read(self) -> bytes | None:
        """What is in it; None where there is none.

        Raises:
            Denied, Unavailable: the file system.
        """
        with self._backend.translated(self.url):
            try:
                found: bytes = self._backend.fs.cat_file(self._path)
            except FileNotFoundError:
                return None
        return found

    def change(self, changed: Callable[[bytes | None], bytes]) -> None:
        """Replace it by what `changed` makes of it. On a disk others wait meanwhile; on an object store the last one wins.

        Raises:
            StoreFull, Denied, Unavailable: the file system; or what `changed` raises.
        """
        with ExitStack() as held:
            with self._backend.translated(self.url):
                held.enter_context(self._backend.locked(f"{self._path}.lock", shared=False))
            new = changed(self.read())
            with self._backend.translated(self.url):
                self._backend.put(self._path, new)

    def write(self, content: bytes) -> None:
        """Replace it whole, whatever is in it: for who is alone with it.

        Raises:
            StoreFull, Denied, Unavailable: the file system.
        """
        with self._backend.translated(self.url):
            self._backend.put(self._path, content)
