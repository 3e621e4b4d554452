"""Records the calls by which this process changes a disk, and can stop the process or a test before one of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = tuple[str, ...]
Patch = Callable[[object, str, object], object]
"""`setattr`, or one that undoes itself."""

_CHANGES = ("fsync", "replace", "fchmod", "remove", "mkdir")


class Steps:
    """The recorded calls, each with its name and its paths below `root`.

    Recorded calls are executed. `before` is called with the number of each call.
    """

    def __init__(self, root: Path, patch: Patch, *, before: Callable[[int], object] = lambda _: None) -> None:
        self.seen: list[Step] = []
        self._root, self._before = root, before
        for name in _CHANGES:
            patch(os, name, self._record_call(name, getattr(os, name)))

    def _record_call(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        paths = 2 if name == "replace" else 1

        def record(*args: Any, **kwargs: Any) -> Any:
            self._before(len(self.seen))
            self.seen.append((name, *map(self._path, args[:paths])))
            return call(*args, **kwargs)

        return record

    def _path(self, target: str | int) -> str:
        path = Path(target) if isinstance(target, str) else Path(f"/proc/self/fd/{target}").readlink()
        return str(path.relative_to(self._root))
