"""Access control of the fake registry: Basic credentials, or tokens."""

import base64
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from tests.fakes.faults import Response
from tests.fakes.request import TOKEN_PATH, Request


@dataclass(frozen=True, slots=True)
class Basic:
    """One user, with the password in every request.

    ``wrong_status`` is the response to other credentials. Only a 401 has a challenge. Amazon ECR answers 403 to an expired
    password.
    """

    user: str
    password: str = field(repr=False)
    wrong_status: int = 401

    def refusal(self, request: Request) -> Response | None:
        """Refuse any other credentials."""
        given = request.headers.get("authorization")
        if given == _basic(self.user, self.password):
            return None
        if given is not None and self.wrong_status != 401:
            return Response.refusal(self.wrong_status, "DENIED", "Your authorization token has expired.")
        return _unauthorized('Basic realm="fake"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """Tokens from ``/token``, for any user or one user, each valid for the requested scopes without the ``withheld`` ones.

    ``expires_in`` (seconds) is only reported to the client: here a token is valid until it is revoked, so no test needs a
    clock. ``realm`` names another token endpoint; a registry with the same ``Bearer`` serves it. ``wrong_status`` is the
    response of the endpoint to other credentials; only a 401 has a challenge.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    expires_in: int = 300
    refuse_anonymous: bool = False
    realm: str | None = None
    withheld: frozenset[str] = frozenset()  # repositories
    wrong_status: int = 401
    grants: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False)  # token -> scopes

    def refusal(self, request: Request) -> Response | None:
        """Refuse a missing or unknown token, and a token without the scope for the repository."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            return self._challenge(request)
        scopes = self.grants.get(token)
        if scopes is None:
            return self._challenge(request, error="invalid_token")
        if not all(any(_lets(scope, *need) for scope in scopes) for need in request.needs):
            return self._challenge(request, error="insufficient_scope")
        return None

    def answer(self, request: Request) -> Response:
        """Answer the token endpoint: anonymous, or with valid Basic credentials."""
        query = parse_qs(request.query)
        given = request.headers.get("authorization")
        if (given is None and self.refuse_anonymous) or given not in {None, _basic(self.user, self.password)}:
            if given is not None and self.wrong_status != 401:
                return Response.refusal(self.wrong_status, "DENIED", "Your authorization token has expired.")
            return _unauthorized('Basic realm="fake"')
        if query.get("service") != ["fake"]:
            return Response.refusal(400, "UNSUPPORTED", "the service must be named once, as in the challenge")
        token = secrets.token_urlsafe(16)
        scopes = [scope for value in query.get("scope", []) for scope in value.split()]
        self.grants[token] = tuple(scope for scope in scopes if scope.split(":")[1] not in self.withheld)
        return Response.of_json(200, {"token": token, "expires_in": self.expires_in})

    def _challenge(self, request: Request, *, error: str | None = None) -> Response:
        realm = self.realm or f"{request.scheme}://{request.headers['host']}{TOKEN_PATH}"
        challenge = f'Bearer realm="{realm}",service="fake"'
        if request.needs:
            scopes = [f"{resource}:{'pull,push' if action == 'push' else action}" for resource, action in request.needs]
            challenge += f',scope="{" ".join(scopes)}"'
        if error:
            challenge += f',error="{error}"'
        return _unauthorized(challenge)


def _basic(user: str | None, password: str | None) -> str | None:
    if user is None:
        return None
    return "Basic " + base64.b64encode(f"{user}:{password or ''}".encode()).decode()


def _unauthorized(challenge: str) -> Response:
    return Response.refusal(401, "UNAUTHORIZED", "authentication required", (("WWW-Authenticate", challenge),))


def _lets(scope: str, wanted: str, action: str) -> bool:
    resource, _, actions = scope.rpartition(":")
    return resource == wanted and action in actions.split(",")
