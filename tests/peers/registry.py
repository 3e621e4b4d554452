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
"""bcrypt of LOGIN, the only hash the registry takes; written down so that tests need no htpasswd program."""

_LOG_S = 5.0
"""How long a line may take to reach the access log after its answer has reached the client."""

# Combined log format: HOST IDENT USER [TIME] "METHOD URI PROTOCOL" STATUS BYTES "REFERER" "AGENT"
# The blank after BYTES keeps out a line that is still being written. The program's own log lines never match.
_ACCESS_LINE = re.compile(
    r'^\S+ - \S+ \[[^]]+\] "(?P<method>[A-Z]+) (?P<uri>\S+) HTTP/[\d.]+" (?P<status>\d{3}) (?P<sent>\d+) ', re.MULTILINE
)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Request:
    """One request as the registry saw it.

    `path` is without the `query`, which is as it came. `sent` is the number of body bytes that the registry handed to the
    kernel: exact for whole answers (a range request counts its range), and for a connection that the client cut, at least
    what the client read and less than the whole as long as the blob is larger than the socket buffers (a few MB).
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

        A line is written after the last byte of its answer, so a client may be faster than the log: say how many
        requests there must be `at_least`, and this waits for them.

        Raises:
            TimeoutError: fewer than that were logged within 5 s.
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

    A second registry over the same directory serves what the first one was given. Deleting is allowed, unless it is not to
    be (`deletes`). `most_entries` is what may be asked for in one page of its catalog, 1000 by itself.
    With `basic_auth`, every request needs the user and password of LOGIN; with `tokens`, a token of that server. With `tls`, a
    directory of `tests.peers.tls.self_signed`, it speaks https, and with `clients` to those alone who show that certificate.
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
    path.write_text(json.dumps(config))  # JSON is YAML, and needs no library
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
    # For a refused HEAD the registry logs the length of the body that HTTP then keeps back.
    sent = 0 if line["method"] == "HEAD" else int(line["sent"])
    path, _, query = line["uri"].partition("?")
    return Request(method=line["method"], path=path, query=query, status=int(line["status"]), sent=sent)
