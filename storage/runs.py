"""The files of a run that several processes carry out together: small JSON documents below `runs/<run>/` in the store."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from prefect_dist.ocispec.errors import DistError, InvalidInput, NotFound
from prefect_dist.storage.backend import Backend
from prefect_dist.storage.background import repeat_in_thread
from prefect_dist.storage.file_info import modification_time
from prefect_dist.storage.layout import Layout

ALIVE_S = 20.0
"""The time between two writes of the file of a process that is alive."""

PARENT_ALIVE = "alive.json"
"""The file of a parent that waits for shards."""

_INPUT = re.compile(r"shard-([0-9]{1,9})\.json")


def name_input(shard: int) -> str:
    """Return the name of the file with the work of a shard."""
    return f"shard-{shard}.json"


def parse_input_name(name: str) -> int | None:
    """Return the number of the shard whose input has this name; None for another file, such as a temporary file."""
    found = _INPUT.fullmatch(name)
    return None if found is None else int(found[1])


def name_result(shard: int) -> str:
    """Return the name of the file with the result of a shard."""
    return f"result-{shard}.json"


def name_alive(shard: int) -> str:
    """Return the name of the file that a shard writes again while it runs."""
    return f"alive-{shard}.json"


class RunFiles:
    """The files of one run. Thread-safe. The run's name and the names of files are letters, digits and `-._`."""

    def __init__(self, backend: Backend, layout: Layout, run: str) -> None:
        """Use the directory of `run`. Nothing is created before the first write.

        Raises:
            InvalidInput: `run` is not a valid name.
        """
        if not run or run.strip(".") == "" or not all(one.isalnum() or one in "-._" for one in run):
            raise InvalidInput(f"run {run!r}: expected letters, digits, and - . _")
        self._backend, self._layout, self._directory = backend, layout, layout.run(run)
        self.url = layout.format_path(self._directory)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace the file. Readers see the old or the new content.

        Raises:
            StoreFull, Denied, Unavailable: the file system.
        """
        with self._backend.translate_errors(f"{self.url}/{name}"):
            self._backend.put(f"{self._directory}/{name}", content)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if the file is missing.

        Raises:
            Denied, Unavailable: the file system.
        """
        with self._backend.translate_errors(f"{self.url}/{name}"):
            return self._backend.read_versioned(f"{self._directory}/{name}")[0]

    def read_modification_time(self, name: str) -> datetime | None:
        """Return the time of the last write of a file, by the clock of the store; None if the file is missing.

        Raises:
            Denied, Unavailable: the file system.
        """
        try:
            with self._backend.translate_errors(f"{self.url}/{name}"):
                return modification_time(self._backend.fs.info(f"{self._directory}/{name}"))
        except NotFound:
            return None

    def list_names(self) -> list[str]:
        """Return the names of the files.

        Raises:
            Denied, Unavailable: the file system.
        """
        try:
            with self._backend.translate_errors(self.url):
                entries = self._backend.fs.ls(self._directory, detail=False)
        except NotFound:
            return []
        return sorted(str(one).rpartition("/")[2] for one in entries)

    @contextmanager
    def show_life(self, name: str) -> Iterator[None]:
        """Write a file at once and every 20 s during this block. Other processes and gc see that this process is alive."""

        def write() -> bool:
            with suppress(DistError):  # a process with an unreachable store only looks silent
                self.write(name, b"{}")
            return False

        with repeat_in_thread(write, pause_s=ALIVE_S, name="alive"):
            yield

    def remove(self) -> None:
        """Remove all files of the run that this program has written, and then the directory if it is empty.

        Raises:
            Denied, Unavailable: the file system; or the directory is a link, and nothing was removed.
        """
        with self._backend.translate_errors(self.url):
            paths = [f"{self._directory}/{name}" for name in self.list_names()]
            self._backend.remove([path for path in paths if self._layout.is_run_file(path)])
            self._backend.remove_directory(self._directory)
