"""A token server on loopback for the token mode of the CNCF registry: RS256 tokens with their certificate (x5c).

The server implements the GET form of distribution's token specification and the POST form of the OAuth2 specification, or
refuses POST. It is as strict as the specifications, grants the allowed subset of the requested scopes, and records requests.
openssl creates the key and signs, so the tests need no further package.
"""

import base64
import json
import secrets
import ssl
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.peers.processes import LOOPBACK

USER, PASSWORD, IDENTITY_TOKEN = "tester", "correct-horse", "an-identity-token-of-tester"
SERVICE, ISSUER = "cncf", "tests"
PUBLIC = "public/"
"""Prefix of repositories with anonymous pull. USER has access to all repositories."""

_MAKE_KEY = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tokens"
_MAX_FORM_BYTES = 64 * 1024
_IDLE_S = 10

Fields = dict[str, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A request for a token: the parameters of its query or form, and the user, None if anonymous or refused."""

    method: str
    fields: Fields
    authorization: str | None
    status: int


class _RefusedError(Exception):
    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


class TokenServer:
    """Serves at `realm` inside its `with` block. The registry must trust `certificate`. The key is in `directory`.

    Settings that may change at any time:

    - `post_status`: status that refuses every POST; None accepts POST.
    - `declared_s`, `signed_s`: the lifetime of tokens in the response, and in the token (the registry adds 60 s).
    - `gives_refresh`: every response to POST has a refresh token.
    - `refresh_tokens`: valid refresh tokens.

    `requests` are the requests for tokens, `issued` all signed tokens.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate, self._key = directory / "tokens-cert.pem", directory / "tokens-key.pem"
        where = ["-keyout", str(self._key), "-out", str(self.certificate)]
        subprocess.run([*_MAKE_KEY.split(), *where], check=True, capture_output=True)
        self.post_status: int | None = None
        self.declared_s = self.signed_s = 300
        self.gives_refresh = False
        self.refresh_tokens = {IDENTITY_TOKEN}
        self.requests: list[TokenRequest] = []
        self.issued: list[str] = []
        self._server = _Server(self)
        self.realm = f"http://{LOOPBACK}:{self._server.server_port}/token"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def sign(self, scopes: Iterable[str], *, user: str | None = None, life_s: int) -> str:
        """Return a token that the registry accepts for these scopes. A token with a negative lifetime has expired."""
        certificate = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(certificate).decode()]}
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": user or "", "aud": SERVICE, "jti": secrets.token_hex(8), "iat": now, "nbf": now - 60}
        claims |= {"exp": now + life_s, "access": [_access(one) for one in scopes]}
        content = f"{_base64url(json.dumps(header).encode())}.{_base64url(json.dumps(claims).encode())}"
        argv = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        signature = subprocess.run(argv, input=content.encode(), check=True, capture_output=True).stdout
        self.issued.append(f"{content}.{_base64url(signature)}")
        return self.issued[-1]

    def answer(self, method: str, fields: Fields, authorization: str | None) -> tuple[int, dict[str, Any]]:
        """Record one request, and return the status and the JSON document of the response."""
        try:
            status, document = 200, self._answer(method, fields, authorization)
        except _RefusedError as exc:
            status, document = exc.status, {"error": str(exc)}
        self.requests.append(TokenRequest(method=method, fields=fields, authorization=authorization, status=status))
        return status, document

    def _answer(self, method: str, fields: Fields, authorization: str | None) -> dict[str, Any]:
        is_post = method == "POST"
        if is_post and self.post_status is not None:
            raise _RefusedError(self.post_status, "unsupported_method")
        if fields.get("service") != [SERVICE] or (is_post and len(fields.get("scope", [])) > 1):
            raise _RefusedError(400, "invalid_request")
        user = self._user_of_form(fields) if is_post else _user_of_header(authorization)
        granted = list(filter(None, (_granted(one, user) for value in fields.get("scope", []) for one in value.split())))
        token = self.sign(granted, user=user, life_s=self.signed_s)
        answer = {"access_token" if is_post else "token": token, "expires_in": self.declared_s}
        if is_post:
            answer["scope"] = " ".join(granted)
        if is_post and self.gives_refresh:
            answer["refresh_token"] = refresh = secrets.token_urlsafe(16)
            self.refresh_tokens.add(refresh)
        return answer

    def _user_of_form(self, fields: Fields) -> str:
        given = {name: values[0] for name, values in fields.items() if len(values) == 1}
        if not given.get("client_id") or given.get("grant_type") not in ("password", "refresh_token"):
            raise _RefusedError(400, "invalid_request")
        if given["grant_type"] == "password":
            good = (given.get("username"), given.get("password")) == (USER, PASSWORD)
        else:
            good = given.get("refresh_token") in self.refresh_tokens
        if not good:
            raise _RefusedError(401, "invalid_grant")
        return USER


def _user_of_header(authorization: str | None) -> str | None:
    if authorization is None:
        return None
    if authorization != "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode():
        raise _RefusedError(401, "unauthorized")
    return USER


def _granted(scope: str, user: str | None) -> str | None:
    """Return the part of a scope that is granted to the user; None for nothing."""
    if user is not None:
        return scope
    access = _access(scope)
    may = access["type"] == "repository" and access["name"].startswith(PUBLIC) and "pull" in access["actions"]
    return f"repository:{access['name']}:pull" if may else None


def _access(scope: str) -> dict[str, Any]:
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return {"type": kind, "name": name, "actions": actions.split(",")}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Server(ThreadingHTTPServer):
    def __init__(self, tokens: TokenServer) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.tokens = tokens


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S

    def do_GET(self) -> None:
        self._reply("GET", parse_qs(urlsplit(self.path).query))

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        is_form = self.headers.get("Content-Type") == "application/x-www-form-urlencoded" and size <= _MAX_FORM_BYTES
        body = self.rfile.read(min(size, _MAX_FORM_BYTES))
        self._reply("POST", parse_qs(body.decode()) if is_form else {})

    def _reply(self, method: str, fields: Fields) -> None:
        status, document = self.server.tokens.answer(method, fields, self.headers.get("Authorization"))
        body = json.dumps(document).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Log nothing."""
