"""Run `dist` and write the modules whose functions were called: `python -m scripts.traced RESULT ARGUMENTS…`.

The result has the modules of the command, and the median number of modules on the way of one blob: those that a task called
between its start and its end in one thread, if it committed content.
"""

import json
import sys
import threading
from pathlib import Path
from statistics import median
from types import FrameType

from tests.source import LAYERS, ROOT

_PREFIXES = tuple(str(ROOT / layer) + "/" for layer in LAYERS)
_LINKS = str(ROOT / "prefect_dist") + "/"
_modules: set[str] = set()
_blobs: list[int] = []
_local = threading.local()


def main() -> None:
    """Run the command with the remaining arguments, and write the result when it exits."""
    result, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
    threading.setprofile(_profile)
    sys.setprofile(_profile)
    try:
        from prefect_dist.cli.main import main as run_dist  # noqa: PLC0415 - the profiler has to see its imports

        run_dist()
    finally:
        sys.setprofile(None)
        blob = median(_blobs) if _blobs else None
        result.write_text(json.dumps({"modules": sorted(_modules), "blob": blob}))


def _profile(frame: FrameType, event: str, _argument: object) -> None:
    if event not in {"call", "return"}:
        return
    path = frame.f_code.co_filename.replace(_LINKS, f"{ROOT}/")
    if not path.startswith(_PREFIXES) or _is_import(frame):
        return
    task = getattr(_local, "task", None)
    if event == "return":
        if task and task[0] is frame:
            _local.task = None
            if task[2]:
                _blobs.append(len(task[1]))
        return
    _modules.add(path)
    if task is None and path.startswith(f"{ROOT}/tasks/"):
        task = _local.task = [frame, set(), False]
    if task:
        task[1].add(path)
        task[2] |= frame.f_code.co_name == "commit" and path.startswith(f"{ROOT}/storage/")


def _is_import(frame: FrameType | None) -> bool:
    while frame:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.replace(_LINKS, f"{ROOT}/").startswith(_PREFIXES):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
