"""Requests to the endpoints of `dist` at the local Prefect server (`cli.local_gate`)."""

import hmac
import http.client
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Self

from prefect_dist.cli.local_auth import encode_basic, prove
from prefect_dist.cli.local_state import State


class NoAnswer(Exception):
    """The server does not answer within the time limit."""


class NotOurs(Exception):
    """The server refuses connections or requests, or does not know the secret: it has ended, ends, or is another program."""


class Ending(NotOurs):
    """The server grants no further leases: it ends now, or after its last lease."""


def open_connection(state: State, *, timeout_s: float) -> "Connection":
    """Return a connection to the server, which has proved its identity.

    Raises:
        NoAnswer: no answer within `timeout_s`.
        NotOurs: there is no server, or another one.
    """
    connection = Connection(state, timeout_s)
    try:
        connection.verify()
    except BaseException:
        connection.close()
        raise
    return connection


class Connection:
    """A connection to a local server. The secret is sent only after `verify`."""

    def __init__(self, state: State, timeout_s: float) -> None:
        self._state = state
        self._http = http.client.HTTPConnection("127.0.0.1", state.port, timeout=timeout_s)
        self._headers: dict[str, str] = {}
        self._lease: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. A lease on it ends."""
        self._http.close()

    def verify(self) -> None:
        """Let the server prove that it knows the secret. The request does not contain the secret."""
        nonce = secrets.token_hex(32)
        proof = self.request("GET", f"/dist/identity?nonce={nonce}").get("proof")
        if not isinstance(proof, str) or not hmac.compare_digest(proof, prove(self._state.secret, self._state.port, nonce)):
            raise NotOurs(f"port {self._state.port}: another program listens there")
        self._headers = {"Authorization": f"Basic {encode_basic(self._state.secret)}"}

    def request(self, method: str, path: str) -> dict[str, Any]:
        """Send a request without a body, and return the JSON object of the response."""
        with _translate_errors():
            response = self._send(method, path)
            document = json.loads(response.read())
        if not isinstance(document, dict):
            raise NotOurs("the answer is not a JSON object")
        return document

    def lease(self) -> None:
        """Keep the server running until this connection is closed."""
        with _translate_errors():
            self._lease = self._send("POST", "/dist/lease")

    def _send(self, method: str, path: str) -> http.client.HTTPResponse:
        self._http.request(method, path, headers=self._headers)
        response = self._http.getresponse()
        if response.status != HTTPStatus.OK:
            error = Ending if response.status == HTTPStatus.SERVICE_UNAVAILABLE else NotOurs
            raise error(f"HTTP {response.status}")
        return response


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except TimeoutError as exc:
        raise NoAnswer("no answer") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise NotOurs(str(exc)) from exc
