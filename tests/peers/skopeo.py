"""The real `skopeo`: an independent reader and writer of registries and OCI layouts.

Names are skopeo's own: `docker://127.0.0.1:PORT/REPOSITORY:TAG` or `oci:DIRECTORY:TAG`. Registries are plain HTTP.
skopeo 1.9 to 1.22 refuses an index inside an index.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.peers.processes import PATIENCE_S, require


class SkopeoError(RuntimeError):
    """skopeo failed; the message is its stderr."""


def copy(source: str, target: str, *, all_platforms: bool = True) -> None:
    """Copy an image, of an index every platform or else only the one of this machine.

    Raises:
        SkopeoError: skopeo could not.
    """
    platforms = ["--all"] if all_platforms else []
    _skopeo("copy", "--src-tls-verify=false", "--dest-tls-verify=false", *platforms, source, target)


def inspect(target: str, *, raw: bool = False) -> dict[str, Any]:
    """Return skopeo's summary of the image (Digest, Architecture, Layers, ...), or with `raw` its parsed manifest.

    The summary of an index is that of the image for this machine; only `raw` shows the index.

    Raises:
        SkopeoError: there is no such image, or skopeo cannot read it.
    """
    form = ["--raw"] if raw else []
    answer: dict[str, Any] = json.loads(_skopeo("inspect", "--tls-verify=false", *form, target))
    return answer


def raw(target: str) -> bytes:
    """Return the bytes of a manifest, as a registry sends them."""
    return _skopeo("inspect", "--tls-verify=false", "--raw", target)


def tags(repository: str) -> list[str]:
    """Return the tags that skopeo lists for `docker://127.0.0.1:PORT/REPOSITORY`."""
    found: list[str] = json.loads(_skopeo("list-tags", "--tls-verify=false", repository))["Tags"]
    return found


def _skopeo(verb: str, *arguments: str) -> bytes:
    command = [require("skopeo", "skopeo"), "--insecure-policy", verb, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    if done.returncode != 0:
        raise SkopeoError(f"skopeo {verb} {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def planned(file: Path, destination: str) -> set[tuple[str, str]]:
    """What `skopeo sync` would copy from where to where by a file, at registries of plain HTTP.

    Raises:
        SkopeoError: skopeo cannot read the file, or not reach a registry.
    """
    command = [require("skopeo", "skopeo"), "--insecure-policy", "sync", "--dry-run", "--src", "yaml", "--dest", "docker"]
    done = subprocess.run([*command, str(file), destination], capture_output=True, timeout=PATIENCE_S, check=False)
    lines = done.stderr.decode(errors="replace")
    if done.returncode != 0 or "level=error" in lines:
        raise SkopeoError(f"skopeo sync {file}: {lines.strip()}")
    return set(re.findall(r'Would have copied.* from="docker://(\S+)" to="docker://(\S+)"', lines))
