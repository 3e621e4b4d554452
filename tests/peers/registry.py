"""The CNCF registry (Debian's `docker-registry`, 2.8) on loopback, with its access log as the list of requests.

It has no referrers API, and answers 404 for an OCI index unless Accept has the media type of the index.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.processes import LOOPBACK, free_port, listening, poll_until, require, running
from tests.peers.tls import CERTIFICATE, KEY
from tests.peers.token_server import ISSUER, SERVICE, TokenServer

LOGIN = ("tester", "correct-horse")
"""User and password of a registry started with `basic_auth=True`."""

_HTPASSWD = "tester:$2b$04$bj8NuIUxSpm0Lbe7bnRpAOMBojvxzUiVfoEhhfB580Bvh12gx2Wgq\n"
"""bcrypt of LOGIN. The registry accepts no other hash, and a constant needs no htpasswd program."""

_LOG_S = 5.0
"""Maximum time from the end of a response to its line in the access log."""

# Combined log format: HOST IDENT USER [TIME] "METHOD URI PROTOCOL" STATUS BYTES "REFERER" "AGENT"
# The blank after BYTES excludes incomplete lines. Other log lines of the program never match.
_ACCESS_LINE = re.compile(
    r'^\S+ - \S+ \[[^]]+\] "(?P<method>[A-Z]+) (?P<uri>\S+) HTTP/[\d.]+" (?P<status>\d{3}) (?P<sent>\d+) ', re.MULTILINE
)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Request:
    """One request in the access log.

    `path` excludes the `query`, which is raw. `sent` is the number of body bytes that the registry passed to the kernel. For
    complete responses the number is exact (a range counts its own length). After a disconnect of the client, the number is at
    least the number of bytes that the client read, and less than the whole if the blob is larger than the socket buffers (a
    few MB).
    """

    method: str
    path: str
    status: int
    sent: int
    query: str = ""


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class CncfRegistry:
    """A running registry; `host` is "127.0.0.1:PORT", plain HTTP unless started with TLS."""

    host: str
    log: Path

    def requests(self, *, at_least: int = 0) -> list[Request]:
        """Return the requests in the order in which they were finished.

        The registry writes a line after the last byte of the response, so a client may be faster than the log. The call
        waits until the log has `at_least` requests.

        Raises:
            TimeoutError: the log has fewer requests after 5 s.
        """
        if not poll_until(lambda: len(self._logged()) >= at_least, timeout_s=_LOG_S):
            raise TimeoutError(f"expected at least {at_least} requests, got {self._logged()}")
        return self._logged()

    def _logged(self) -> list[Request]:
        return [_request(line) for line in _ACCESS_LINE.finditer(self.log.read_text(errors="replace"))]


@contextmanager
def cncf_registry(
    directory: Path,
    *,
    basic_auth: bool = False,
    tokens: TokenServer | None = None,
    tls: Path | None = None,
    clients: Path | None = None,
    deletes: bool = True,
    most_entries: int | None = None,
) -> Iterator[CncfRegistry]:
    """Run a registry that keeps its content, configuration and log in `directory` (made if missing).

    A later registry over the same directory serves the same content. `deletes` allows deletions. `most_entries` is the limit of
    one page of the catalog; default: 1000. With `basic_auth`, every request needs the user and password of LOGIN; with
    `tokens`, a token of this server. With `tls`, a directory of `tests.peers.tls.self_signed`, the registry speaks https. With
    `clients`, the registry requires this client certificate.
    """
    program = require("docker-registry", "docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = _config(directory, f"{LOOPBACK}:{port}", basic_auth=basic_auth, tokens=tokens)
    config["storage"]["delete"] = {"enabled": deletes}
    if most_entries:
        config["catalog"] = {"maxentries": most_entries}
    if tls:
        files = {"certificate": str(tls / CERTIFICATE), "key": str(tls / KEY)}
        config["http"]["tls"] = files | ({"clientcas": [str(clients)]} if clients else {})
    path = directory / f"registry-{port}.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    log = directory / f"registry-{port}.log"
    with running([program, "serve", path], ready=listening(port), log=log):
        yield CncfRegistry(host=f"{LOOPBACK}:{port}", log=log)


def _config(directory: Path, address: str, *, basic_auth: bool, tokens: TokenServer | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": address},
    }
    if basic_auth:
        users = directory / "htpasswd"
        users.write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(users)}}
    if tokens:
        trusted = {"issuer": ISSUER, "rootcertbundle": str(tokens.certificate)}
        config["auth"] = {"token": {"realm": tokens.realm, "service": SERVICE, **trusted}}
    return config


def _request(line: re.Match[str]) -> Request:
    # For a refused HEAD, the registry logs the length of a body that HTTP does not send.
    sent = 0 if line["method"] == "HEAD" else int(line["sent"])
    path, _, query = line["uri"].partition("?")
    return Request(method=line["method"], path=path, query=query, status=int(line["status"]), sent=sent)
