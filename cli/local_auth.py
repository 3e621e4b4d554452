"""The proofs of identity between the local Prefect server and its clients.

The server proves that it knows the secret by an HMAC, before a client sends the secret.

A browser logs in with a one-time code. Prefect's UI keeps the user and password of the API in the local storage of the browser.
The page of a code writes them there, and replaces itself by the requested page of the UI. So the password is never part of an
address.

Other users of the machine can read the command line of a browser. So a browser is started with a private file, whose page leads
to the address with the code.
"""

import base64
import hashlib
import hmac
import html
import json
import re
import secrets
import time
from typing import Final

# The key of Prefect's UI for base64(user:password), in both versions of the UI.
_STORAGE_KEY = "prefect-password"
_CODE_S = 600
_MAX_CODES = 1000
# A path of the UI. A second slash at the start would name another host.
_PATH: Final = re.compile(r"/(?!/)[\w/-]*", re.ASCII)
_EXPIRED = (
    "<!doctype html><meta charset=utf-8><title>dist</title>"
    "<p>This address was used before, or is older than 10 minutes. Run <code>dist server open</code> for a new address."
)


class Codes:
    """Codes that are valid once, for ten minutes."""

    def __init__(self) -> None:
        self._expiry: dict[str, float] = {}

    def issue(self) -> str:
        """Return a new code."""
        now = time.monotonic()
        valid = [(code, end) for code, end in self._expiry.items() if end > now]
        self._expiry = dict(valid[-_MAX_CODES:])
        code = secrets.token_urlsafe(24)
        self._expiry[code] = now + _CODE_S
        return code

    def redeem(self, code: str) -> bool:
        """Return True if the code is valid. The code is invalid from now on."""
        return self._expiry.pop(code, 0) > time.monotonic()

    def list_valid(self) -> list[str]:
        """Return the codes that are valid."""
        now = time.monotonic()
        return [code for code, end in self._expiry.items() if end > now]


def prove(secret: str, port: int, nonce: str) -> str:
    """Return the proof that the server on `port` knows the secret."""
    return hmac.new(secret.encode(), f"dist local server {port} {nonce}".encode(), hashlib.sha256).hexdigest()


def encode_basic(secret: str) -> str:
    """Return the base64 form of `user:password` that HTTP's Basic scheme requires."""
    return base64.b64encode(secret.encode()).decode()


def is_ui_path(path: str) -> bool:
    """Return True for a path of the UI on this server."""
    return _PATH.fullmatch(path) is not None


def make_page(secret: str, path: str) -> tuple[bytes, dict[str, str]]:
    """Return the HTML that logs the browser in and opens `path`, and the headers of the response."""
    nonce = secrets.token_urlsafe(16)
    script = f"localStorage.setItem({_quote(_STORAGE_KEY)}, {_quote(encode_basic(secret))}); location.replace({_quote(path)})"
    page = f'<!doctype html><meta charset=utf-8><title>Prefect</title><script nonce="{nonce}">{script}</script>'
    return page.encode(), _make_headers(f"script-src 'nonce-{nonce}'")


def make_start_page(address: str) -> str:
    """Return the HTML of a file that leads a browser to an address with a code."""
    target = html.escape(address)
    return (
        "<!doctype html><meta charset=utf-8><meta name=referrer content=no-referrer><title>Prefect</title>"
        f'<meta http-equiv=refresh content="0;url={target}"><p><a href="{target}">Open Prefect</a>'
    )


def make_expired_page() -> tuple[bytes, dict[str, str]]:
    """Return the HTML for an invalid code, and the headers of the response."""
    return _EXPIRED.encode(), _make_headers("script-src 'none'")


def _quote(text: str) -> str:
    """Return a JavaScript literal that cannot end the element of the script."""
    return json.dumps(text).replace("<", "\\u003c")


def _make_headers(policy: str) -> dict[str, str]:
    return {
        "content-type": "text/html; charset=utf-8",
        "cache-control": "no-store",
        "content-security-policy": f"default-src 'none'; base-uri 'none'; frame-ancestors 'none'; {policy}",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
