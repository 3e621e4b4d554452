"""A small file at a path or URL that runs keep next to a store, such as the lock file of a mirror."""

from collections.abc import Callable, Mapping
from typing import Any

from prefect_dist.storage import shared
from prefect_dist.storage.backend import open_backend


class StateFile:
    """The file at `url`; `options` are fsspec's for that place."""

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        place, _, self._name = url.rpartition("/")
        self._backend, _, layout = open_backend(place or "/", options or {})
        self._path = f"{layout.root}/{self._name}"

    def read(self) -> bytes | None:
        """Return its content; None if there is no file.

        Raises:
            Denied, Unavailable: the file system.
        """
        with self._backend.translated(self.url):
            return self._backend.versioned(self._path)[0]

    def change(self, changed: Callable[[bytes | None], bytes]) -> None:
        """Replace its content by what `changed` makes of it; see `storage.shared.change`.

        Raises:
            StoreFull, Denied, Unavailable: the file system; or what `changed` raises.
        """
        shared.change(self._backend, self._path, changed, what=self.url)

    def write(self, content: bytes) -> None:
        """Replace its content, whatever that is.

        Raises:
            StoreFull, Denied, Unavailable: the file system.
        """
        with self._backend.translated(self.url):
            self._backend.put(self._path, content)
