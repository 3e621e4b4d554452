"""Credentials from Docker's configuration file (`docker login` writes it)."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ocispec.errors import InvalidInput

# Docker Hub has one account under many names; the first is what `docker login` writes.
_DOCKER_HUB = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password or access token. The password shows in no representation."""

    user: str
    password: str = field(repr=False)

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class DockerConfig:
    """The plain entries of a Docker configuration file: `auths: {host: {auth | username, password}}`."""

    def __init__(self, auths: Mapping[str, Credentials]) -> None:
        self._auths = auths

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> "DockerConfig":
        """The file in `$DOCKER_CONFIG` or `~/.docker`; none is an empty one.

        Raises:
            InvalidInput: the file is damaged; the message names it and shows nothing of it.
        """
        path = Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
        try:
            document = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return cls({})
        except OSError as exc:
            raise InvalidInput(f"{path}: {exc.strerror}") from exc
        except orjson.JSONDecodeError:
            raise InvalidInput(f"{path}: not JSON") from None  # the parser's error shows the text, which holds passwords
        return cls(_auths(document, path))

    def get(self, host: str) -> Credentials | None:
        """The credentials for a registry's host, as it stands in references."""
        keys = _DOCKER_HUB if host in _DOCKER_HUB else (host,)
        return next((found for key in keys if (found := self._auths.get(_bare(key)))), None)


def _auths(document: Any, path: Path) -> dict[str, Credentials]:
    entries = document.get("auths") or {} if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise InvalidInput(f"{path}: expected an object with auths")
    found = {}
    for host, entry in entries.items():
        if not isinstance(entry, dict):
            raise InvalidInput(f"{path}: auths.{host}: expected an object")
        if credentials := _credentials(entry, f"{path}: auths.{host}"):
            found[_bare(host)] = credentials
    return found


def _credentials(entry: Mapping[str, Any], at: str) -> Credentials | None:
    """None for an entry without secrets: their place is a credential helper."""
    if entry.get("username") and entry.get("password"):
        return Credentials(entry["username"], entry["password"])
    if not entry.get("auth"):
        return None
    try:
        user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except (ValueError, TypeError):  # not base64, not ASCII, not UTF-8; no string
        raise InvalidInput(f"{at}.auth: expected base64 of user:password") from None
    if not colon:
        raise InvalidInput(f"{at}.auth: expected base64 of user:password")
    return Credentials(user, password.rstrip("\0"))


def _bare(key: str) -> str:
    """The host of a key, which old clients wrote as a URL."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key
