#!/usr/bin/env python3
"""Build a small real image for two platforms.

`python examples/image.py DIR [TAG] [--seed TEXT]` writes an OCI layout.

Each platform has three layers: BusyBox, a few files in /etc and /tmp, and the deletion of one of them (a whiteout).
The last two layers are the same blobs on both platforms. The archives of the layers are packed here; the real `umoci`
compresses them and makes configs and manifests (`umoci raw add-layer`, because Debian 12's handier `umoci insert`
writes archives without an end). The index over both platforms is written here again, which umoci cannot do.

linux/amd64 has the binary of Debian's busybox-static: the installed one, or else one fetched by `apt-get download`
and unpacked into a temporary folder. Debian machines know only their own architecture until somebody reconfigures
dpkg, and an example should not, so linux/arm64/v8 is a stand-in: a text file where the binary would be. (On an arm64
machine it is the other way round.) The same package and seed give the same digests every time, another seed others.

Needs Debian's umoci, and apt's lists if busybox-static is not installed. Prints the digest of the index; push it with

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
_STAND_IN = b"stand-in for a BusyBox of another architecture\n"


class Member(NamedTuple):
    """One entry of a layer, as tar wants it: a folder, a link or a file; only files have content."""

    name: str
    type: bytes
    mode: int
    content: bytes = b""
    target: str = ""


def build(directory: Path, tag: str, *, seed: str = "") -> str:
    """Write an OCI layout to `directory`, which must not exist yet, with one index named `tag`; return its digest.

    The text `seed` is the content of a file in the image, so that images with other seeds have other digests.

    Raises:
        SystemExit: a program failed or is missing; stderr says why.
    """
    _run("umoci", "init", "--layout", str(directory))
    real = _run("dpkg", "--print-architecture").strip()
    binary = _read_busybox()
    for architecture in PLATFORMS:
        busybox = binary if architecture == real else _STAND_IN
        _build_platform(directory, architecture, (_busybox_layer(busybox), _settings_layer(seed), _deletion_layer()))
    _run("umoci", "gc", "--layout", str(directory))  # drops the manifests of the steps in between
    return _join(directory, tag)


def _read_busybox() -> bytes:
    """Return a statically linked BusyBox of this machine's architecture."""
    status = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", "busybox-static"]
    if subprocess.run(status, capture_output=True, text=True, check=False).stdout == "installed":
        return Path("/bin/busybox").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        # Root downloads it itself: apt's own user _apt may not write to a temporary folder of root.
        _run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "busybox-static", folder=folder)
        (package,) = Path(folder).glob("*.deb")
        _run("dpkg-deb", "-x", str(package), f"{folder}/unpacked")
        return Path(folder, "unpacked/bin/busybox").read_bytes()


def _busybox_layer(busybox: bytes) -> list[Member]:
    links = [Member(f"bin/{applet}", tarfile.SYMTYPE, 0o777, target="busybox") for applet in APPLETS]
    return [Member("bin", tarfile.DIRTYPE, 0o755), Member("bin/busybox", tarfile.REGTYPE, 0o755, busybox), *links]


def _settings_layer(seed: str) -> list[Member]:
    seeded = [Member("etc/seed", tarfile.REGTYPE, 0o644, f"{seed}\n".encode())] if seed else []
    return [
        Member("etc", tarfile.DIRTYPE, 0o755),
        Member("etc/hostname", tarfile.REGTYPE, 0o644, b"demo\n"),
        Member("etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0:root:/:/bin/sh\n"),
        *seeded,
        Member("tmp", tarfile.DIRTYPE, 0o1777),
        Member("tmp/build.log", tarfile.REGTYPE, 0o644, b"built\n"),
    ]


def _deletion_layer() -> list[Member]:
    return [Member("tmp", tarfile.DIRTYPE, 0o1777), Member("tmp/.wh.build.log", tarfile.REGTYPE, 0o644)]


def _build_platform(layout: Path, architecture: str, layers: Iterable[list[Member]]) -> None:
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


def _pack(layer: list[Member]) -> bytes:
    """Return a tar archive that depends on nothing but its members: all owned by root, all of 1 January 1970."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for member in layer:
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.mode, entry.linkname = member.type, member.mode, member.target
            entry.size = len(member.content)
            tar.addfile(entry, io.BytesIO(member.content))
    return archive.getvalue()


def _join(layout: Path, tag: str) -> str:
    """Replace the layout's one name per platform by one name for an index over all of them; return its digest."""
    names = json.loads((layout / "index.json").read_bytes())
    entries = {entry["annotations"][_NAME]: entry for entry in names["manifests"]}
    manifests = [_described(entries[architecture], platform) for architecture, platform in PLATFORMS.items()]
    raw = _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests})
    digest = hashlib.sha256(raw).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(raw)
    root = {"mediaType": _INDEX, "digest": f"sha256:{digest}", "size": len(raw), "annotations": {_NAME: tag}}
    (layout / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [root]}))
    return f"sha256:{digest}"


def _described(entry: dict[str, Any], platform: dict[str, str]) -> dict[str, Any]:
    return {key: entry[key] for key in ("mediaType", "digest", "size")} | {"platform": platform}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode()


def _run(*command: str, folder: str | None = None) -> str:
    """Run a program in `folder` and return its stdout; its stderr goes where ours goes."""
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
