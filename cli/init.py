"""The command init: writes the files of a new project."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from prefect_dist.cli import inputs, output
from prefect_dist.cli.inputs import BadInput
from prefect_dist.cli.options import Shared, option
from prefect_dist.ocispec.errors import AlreadyExists

_NEXT = """
Next:

1. Enter your images and your registry in mirror.yaml, and show the plan:
{change_directory}
     dist config mirror.yaml
     dist mirror mirror.yaml --dry-run

2. To deploy, remove the # before store and lock in mirror.yaml, and enter places that all workers can write: the deployments
   mirror and check need both. Set PREFECT_API_URL to your Prefect server (prefect --no-prompt server start), and save the
   configuration and the location of the content store, the same as in mirror.yaml, as blocks, here or in the UI:

python - <<'END'
from pathlib import Path
from prefect_dist.flows.blocks import ContentStore, MirrorConfiguration
MirrorConfiguration(text=Path("mirror.yaml").read_text()).save("mirror", overwrite=True)
ContentStore(url="/var/lib/dist/store").save("dist", overwrite=True)
END

     prefect work-pool create dist --type process
     prefect --no-prompt deploy --all
     prefect automation create --from-file automations/silent.yaml

3. On each machine that runs deployments, with prefect-dist installed and PREFECT_API_URL set:

     prefect worker start --pool dist --limit 4

   The limit is the number of runs on this machine at the same time. A run with the parameter workers takes a place for itself
   and one for each shard, so the limits of all machines together should be at least workers + 1.
"""


def init(
    directory: Annotated[
        str, Parameter(name="DIR", help="The directory of the project; created if it is missing. With --from: the file.")
    ] = ".",
    /,
    *,
    source: Annotated[
        Literal["skopeo"] | None,
        Parameter(name="--from", help="Convert a file of skopeo sync: print the equivalent mirror.yaml, and write no file."),
    ] = None,
    to: Annotated[
        list[str] | None, option("With --from: target registry of the images, with or without a path; repeatable.")
    ] = None,
    context: Shared,
) -> int:
    """Write prefect.yaml, mirror.yaml, its JSON schema and automations/ to a directory, and print the next commands.

    Raises:
        BadInput: `directory` is a file, or --from and --to were not given together.
        AlreadyExists: one of the files exists. Nothing is written.
    """
    if bool(to) != (source is not None):
        raise BadInput("--from and --to require each other: a file of skopeo sync has no target")
    if source is not None:
        text = inputs.convert_skopeo(directory, to or ())
        if context.output == "json":
            output.print_json({"configuration": text})
        else:
            output.print_lines(text.splitlines())
        return 0
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise BadInput(f"{directory}: expected a directory, got a file")
    files = dict(_project_files(resources.files("prefect_dist") / "project"))
    if existing := _list_existing(target, files):
        remedy = "choose another directory"
        if "prefect.yaml" in existing:
            add = "run dist init in an empty directory and copy them from its prefect.yaml"
            remedy += f"; to add the deployments to this project, {add}"
        raise AlreadyExists(f"{directory}: {', '.join(existing)}: file exists; nothing was written; {remedy}")
    _write(target, files)
    if context.output == "json":
        output.print_json({"directory": directory, "files": list(files)})
    else:
        change = f"\n     cd {shlex.quote(directory)}" if directory != "." else ""
        output.print_lines([*(f"wrote {target / name}" for name in files), _NEXT.format(change_directory=change)])
    return 0


def _project_files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file below `folder`."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _project_files(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.read_bytes()


def _list_existing(target: Path, names: Mapping[str, bytes]) -> list[str]:
    """Return the existing names below `target`, and the names of files in the place of a folder."""
    folders = {name.partition("/")[0] for name in names if "/" in name}
    blocked = [name for name in sorted(folders) if os.path.lexists(target / name) and not (target / name).is_dir()]
    return blocked + [name for name in names if os.path.lexists(target / name)]


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    """Create the files and the missing folders. After an error, remove the created files and folders."""
    created: list[Path] = []
    try:
        for name, content in files.items():
            path = target / name
            for folder in reversed(path.parents):
                if not folder.exists():
                    folder.mkdir()
                    created.append(folder)
            _create(path, content, created)
    except BaseException:
        for path in reversed(created):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def _create(path: Path, content: bytes, created: list[Path]) -> None:
    """Write a new file, and add the path to `created`. An error names the file."""
    try:
        with path.open("xb") as file:
            created.append(path)
            file.write(content)
    except OSError as exc:
        exc.filename = exc.filename or str(path)
        raise
