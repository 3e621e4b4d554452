"""nginx: as a registry that serves files, with or without limits, and as a TLS proxy in front of a registry.

The access log of the registry has a line "METHOD path status" for each request.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.images import BuiltImage
from tests.peers.processes import LOOPBACK, free_port, listening, require, running

# `user root`: otherwise, nginx started by root works as a user without access to the directories of the tests.
_CONFIG = """
user root;
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format requests "$request_method $uri $status";
    access_log {log};
    sendfile on;
    keepalive_requests 100000;
    default_type application/octet-stream;
    limit_req_zone $server_port zone=all:1m rate={per_second}r/s;
    limit_req_status 429;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {address};
        root {directory}/root;
        {limits}
        error_page 429 @alone;
        location @alone {{ add_header Retry-After 1 always; return 429; }}
        location = /v2/ {{ return 200; }}
        location ~ /manifests/ {{ default_type application/vnd.oci.image.manifest.v1+json; }}
    }}
}}
"""

_PROXY = """
user root;
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {address} ssl;
        ssl_certificate {directory}/cert.pem;
        ssl_certificate_key {directory}/key.pem;
        location / {{
            proxy_pass http://{upstream};
            proxy_set_header Host $http_host;
            {forwarded}
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class StaticRegistry:
    """A running server; `host` is "127.0.0.1:PORT"."""

    host: str
    log: Path

    @property
    def statuses(self) -> list[int]:
        """Status of every response so far."""
        return [int(line.rpartition(" ")[2]) for line in self.log.read_text().splitlines()]


@contextmanager
def static_registry(
    directory: Path, *, per_second: int | None = None, burst: int = 10, bytes_per_second: int | None = None
) -> Iterator[StaticRegistry]:
    """Serve the files that `put` wrote below `directory`.

    `per_second` requests of all clients together are served, and a `burst` in addition; further requests get 429 with
    Retry-After 1. Each connection gets `bytes_per_second`. Requests are logged only with a limit.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config, log = directory / "nginx.conf", directory.absolute() / "access.log"
    limits = [f"limit_req zone=all burst={burst} nodelay;"] if per_second else []
    limits += [f"limit_rate {bytes_per_second};"] if bytes_per_second else []
    config.write_text(
        _CONFIG.format(
            directory=directory.absolute(),
            address=f"{LOOPBACK}:{port}",
            log=f"{log} requests" if limits else "off",
            per_second=per_second or 1,
            limits=" ".join(limits),
        )
    )
    argv = [require("nginx", "nginx"), "-p", str(directory.absolute()), "-c", str(config.absolute())]
    with running(argv, ready=listening(port), log=directory / "nginx.log"):
        yield StaticRegistry(f"{LOOPBACK}:{port}", log)


@contextmanager
def tls_proxy(directory: Path, upstream: str, *, says_https: bool) -> Iterator[str]:
    """Run a TLS proxy in front of a registry; yield its "127.0.0.1:PORT". `directory` has its certificate and key.

    Without `says_https`, the proxy does not send X-Forwarded-Proto.
    """
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        _PROXY.format(
            directory=directory.absolute(),
            address=f"{LOOPBACK}:{port}",
            upstream=upstream,
            forwarded="proxy_set_header X-Forwarded-Proto $scheme;" if says_https else "",
        )
    )
    argv = [require("nginx", "nginx"), "-p", str(directory.absolute()), "-c", str(config.absolute())]
    with running(argv, ready=listening(port), log=directory / "nginx.log"):
        yield f"{LOOPBACK}:{port}"


def put(directory: Path, repository: str, image: BuiltImage, tag: str) -> None:
    """Write an image as files for `static_registry`: manifests by digest, and the root also by tag."""
    place = directory / "root" / "v2" / repository
    for kind, content in (("blobs", image.blobs), ("manifests", {m.digest: m.raw for m in image.manifests})):
        (place / kind).mkdir(parents=True, exist_ok=True)
        for digest, data in content.items():
            (place / kind / digest).write_bytes(data)
    (place / "manifests" / tag).write_bytes(image.manifests[-1].raw)
