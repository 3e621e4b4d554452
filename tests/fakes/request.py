"""Requests to a registry after the distribution spec 1.1: routes, requests, and the record of an exchange."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs

# <name> of the distribution spec, "Pulling manifests"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags|referrers)/(?P<key>[^/]+)")
UPLOAD_ROUTE = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<session>[^/]*)")
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
TOKEN_PATH, CATALOG_PATH = "/token", "/v2/_catalog"
READS = frozenset({"GET", "HEAD"})
WRITES = frozenset({"POST", "PATCH", "PUT", "DELETE"})
_ACTIONS = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}  # of tokens; all else is push


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of a client. ``headers`` have lower-case names; repeated headers are joined by a comma."""

    method: str
    path: str  # without the query
    query: str  # raw
    headers: dict[str, str]
    scheme: str

    @property
    def repository(self) -> str | None:
        """Repository in the path, valid or not."""
        route = UPLOAD_ROUTE.fullmatch(self.path) or ROUTE.fullmatch(self.path)
        return route["name"] if route else None

    @property
    def mounted_from(self) -> str | None:
        """Source repository of a mount."""
        query = parse_qs(self.query)
        return query["from"][0] if self.method == "POST" and {"mount", "from"} <= query.keys() else None

    @property
    def needs(self) -> list[tuple[str, str]]:
        """Required scopes of a token: resources, each with an action."""
        if self.path == CATALOG_PATH:
            return [("registry:catalog", "*")]
        own = [(f"repository:{self.repository}", _ACTIONS.get(self.method, "push"))] if self.repository else []
        return own + ([(f"repository:{self.mounted_from}", "pull")] if self.mounted_from else [])

    @property
    def is_upload(self) -> bool:
        """True if the request opens or continues an upload."""
        return UPLOAD_ROUTE.fullmatch(self.path) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A finished exchange, successful or not; ``sent`` and ``received`` count body bytes, status 0 means no response."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int
    sent: int
    received: int = 0
