#!/usr/bin/env python3
"""Build a small real image for two platforms.

`python examples/image.py DIR [TAG] [--seed TEXT]` writes an OCI layout and prints the digest of the index.

Each platform has three layers: BusyBox, a few files in /etc and /tmp, and the deletion of one of these files (a whiteout).
The last two layers are the same blobs on both platforms. This program packs the archives of the layers. The real `umoci`
compresses the archives and makes configs and manifests with `umoci raw add-layer`, because `umoci insert` of Debian 12
writes archives without an end. umoci cannot make an index over two platforms, so this program writes the index.

linux/amd64 has the binary of the package busybox-static of Debian. If the package is not installed, `apt-get download`
fetches the package into a temporary folder. A Debian machine gets packages of another architecture only after a change
of the configuration of dpkg, which an example should not make. So the binary of linux/arm64/v8 is a text file. On an
arm64 machine the binary of linux/amd64 is a text file. The same package and seed always give the same digests, and
another seed gives other digests.

The program needs umoci of Debian, and the package lists of apt if busybox-static is not installed. Push the image with

    skopeo --insecure-policy copy --all --dest-tls-verify=false oci:DIR:TAG docker://127.0.0.1:PORT/demo/busybox:latest
"""

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

PLATFORMS = {
    "amd64": {"architecture": "amd64", "os": "linux"},
    "arm64": {"architecture": "arm64", "os": "linux", "variant": "v8"},
}
APPLETS = ("cat", "echo", "ls", "sh", "wget")

_INDEX = "application/vnd.oci.image.index.v1+json"
_NAME = "org.opencontainers.image.ref.name"
_CREATED = "1970-01-01T00:00:00Z"
_STAND_IN = b"placeholder for a BusyBox of another architecture\n"


class LayerEntry(NamedTuple):
    """An entry of the archive of a layer: a folder, a link or a file. Only files have content."""

    name: str
    type: bytes
    mode: int
    content: bytes = b""
    target: str = ""


def build(directory: Path, tag: str, *, seed: str = "") -> str:
    """Write an OCI layout with one index named `tag`, and return the digest of the index.

    `directory` must not exist. The text `seed` is the content of a file in the image, so another seed gives another digest.

    Raises:
        SystemExit: a program failed or is missing; stderr has the reason.
    """
    _run("umoci", "init", "--layout", str(directory))
    real = _run("dpkg", "--print-architecture").strip()
    binary = _read_busybox()
    for architecture in PLATFORMS:
        busybox = binary if architecture == real else _STAND_IN
        _build_platform(directory, architecture, (_busybox_layer(busybox), _settings_layer(seed), _deletion_layer()))
    _run("umoci", "gc", "--layout", str(directory))  # removes the manifests of intermediate steps
    return _join(directory, tag)


def _read_busybox() -> bytes:
    """Return a statically linked BusyBox for the architecture of this machine."""
    status = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", "busybox-static"]
    if subprocess.run(status, capture_output=True, text=True, check=False).stdout == "installed":
        return Path("/bin/busybox").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        # The user _apt of apt has no permission to write to a temporary folder of root, so root downloads the package.
        _run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "busybox-static", folder=folder)
        (package,) = Path(folder).glob("*.deb")
        _run("dpkg-deb", "-x", str(package), f"{folder}/unpacked")
        return Path(folder, "unpacked/bin/busybox").read_bytes()


def _busybox_layer(busybox: bytes) -> list[LayerEntry]:
    links = [LayerEntry(f"bin/{applet}", tarfile.SYMTYPE, 0o777, target="busybox") for applet in APPLETS]
    return [LayerEntry("bin", tarfile.DIRTYPE, 0o755), LayerEntry("bin/busybox", tarfile.REGTYPE, 0o755, busybox), *links]


def _settings_layer(seed: str) -> list[LayerEntry]:
    seeded = [LayerEntry("etc/seed", tarfile.REGTYPE, 0o644, f"{seed}\n".encode())] if seed else []
    return [
        LayerEntry("etc", tarfile.DIRTYPE, 0o755),
        LayerEntry("etc/hostname", tarfile.REGTYPE, 0o644, b"demo\n"),
        LayerEntry("etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0:root:/:/bin/sh\n"),
        *seeded,
        LayerEntry("tmp", tarfile.DIRTYPE, 0o1777),
        LayerEntry("tmp/build.log", tarfile.REGTYPE, 0o644, b"built\n"),
    ]


def _deletion_layer() -> list[LayerEntry]:
    return [LayerEntry("tmp", tarfile.DIRTYPE, 0o1777), LayerEntry("tmp/.wh.build.log", tarfile.REGTYPE, 0o644)]


def _build_platform(layout: Path, architecture: str, layers: Iterable[list[LayerEntry]]) -> None:
    """Make the image named `architecture` in the layout."""
    image = ("--image", f"{layout}:{architecture}")
    _run("umoci", "new", *image)
    for layer in layers:
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            archive.write(_pack(layer))
            archive.flush()
            _run("umoci", "raw", "add-layer", *image, "--history.created", _CREATED, archive.name)
    config = ("--os", "linux", "--architecture", architecture, "--created", _CREATED, "--config.cmd", "/bin/sh")
    _run("umoci", "config", *image, "--no-history", *config)


def _pack(layer: list[LayerEntry]) -> bytes:
    """Return a tar archive that depends only on its members: root owns each member, and each date is 1 January 1970."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for member in layer:
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.mode, entry.linkname = member.type, member.mode, member.target
            entry.size = len(member.content)
            tar.addfile(entry, io.BytesIO(member.content))
    return archive.getvalue()


def _join(layout: Path, tag: str) -> str:
    """Replace the names of the platforms in the layout by one name for an index over the platforms. Return its digest."""
    names = json.loads((layout / "index.json").read_bytes())
    entries = {entry["annotations"][_NAME]: entry for entry in names["manifests"]}
    manifests = [_with_platform(entries[architecture], platform) for architecture, platform in PLATFORMS.items()]
    raw = _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests})
    digest = hashlib.sha256(raw).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(raw)
    root = {"mediaType": _INDEX, "digest": f"sha256:{digest}", "size": len(raw), "annotations": {_NAME: tag}}
    (layout / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [root]}))
    return f"sha256:{digest}"


def _with_platform(entry: dict[str, Any], platform: dict[str, str]) -> dict[str, Any]:
    return {key: entry[key] for key in ("mediaType", "digest", "size")} | {"platform": platform}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode()


def _run(*command: str, folder: str | None = None) -> str:
    """Run a program in `folder` and return its stdout."""
    program = command[0]
    try:
        return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    except FileNotFoundError as missing:
        raise SystemExit(f"{program} is missing; on Debian: apt-get install {program}") from missing
    except subprocess.CalledProcessError as failed:
        raise SystemExit(f"{program} failed: {' '.join(command)}") from failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build a small real image for two platforms as an OCI layout.")
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder of the layout; must not exist yet")
    parser.add_argument("tag", metavar="TAG", nargs="?", default="latest", help="name in the layout (latest)")
    parser.add_argument("--seed", metavar="TEXT", default="", help="content of /etc/seed: another seed gives another digest")
    arguments = parser.parse_args()
    print(build(arguments.directory, arguments.tag, seed=arguments.seed))
