"""nginx as a registry that does nothing but send files: for measurements in which serving should cost as little as can be."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.images import BuiltImage
from tests.peers.processes import LOOPBACK, free_port, listening, require, running

# Started by root, nginx would work as somebody who may not enter our directories; started by others it ignores `user`.
_CONFIG = """
user root;
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 100000;
    default_type application/octet-stream;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{ listen {address}; root {directory}/root; }}
}}
"""


@contextmanager
def static_registry(directory: Path) -> Iterator[str]:
    """The `host:port` of a server that sends what `put` laid below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(_CONFIG.format(directory=directory.absolute(), address=f"{LOOPBACK}:{port}"))
    argv = [require("nginx", "nginx"), "-p", str(directory.absolute()), "-c", str(config.absolute())]
    with running(argv, ready=listening(port), log=directory / "nginx.log"):
        yield f"{LOOPBACK}:{port}"


def put(directory: Path, repository: str, image: BuiltImage, tag: str) -> None:
    """Lay an image out where `static_registry` finds it: manifests by digest and the root by tag, too."""
    place = directory / "root" / "v2" / repository
    for kind, content in (("blobs", image.blobs), ("manifests", {m.digest: m.raw for m in image.manifests})):
        (place / kind).mkdir(parents=True, exist_ok=True)
        for digest, data in content.items():
            (place / kind / digest).write_bytes(data)
    (place / "manifests" / tag).write_bytes(image.manifests[-1].raw)
