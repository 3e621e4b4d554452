"""A strict OCI registry on loopback, after the distribution spec 1.1: pull, push and delete; and Docker's catalog.

Strict: where registries differ, it behaves like the least forgiving one known; a client that gets on with it gets on
with all. Every exchange is recorded, so that tests can assert on what was asked. It imports nothing of the project:
a mistake there cannot hide behind the same mistake here. What goes wrong on purpose is described in ``faults.py``, upload
sessions are in ``uploads.py``, lists in ``lists.py``.
"""

import base64
import hashlib
import itertools
import json
import re
import secrets
import select
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any, Literal, Self
from urllib.parse import parse_qs

from tests.fakes import lists
from tests.fakes.faults import Drop, Fault, Headers, Refuse, Response
from tests.fakes.uploads import Step, Uploads, created

OCI_INDEX = "application/vnd.oci.image.index.v1+json"

# <name> of the distribution spec, "Pulling manifests"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
_ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags|referrers)/(?P<key>[^/]+)")
_RANGE = re.compile(r"bytes=(?P<first>\d+)-(?P<last>\d*)")  # one range with a start: suffixes and lists are refused
_UPLOAD_ROUTE = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<session>[^/]*)")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_TOKEN_PATH, _CATALOG_PATH = "/token", "/v2/_catalog"
_READS = frozenset({"GET", "HEAD"})
_WRITES = frozenset({"POST", "PATCH", "PUT", "DELETE"})
_ACTIONS = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}  # of tokens; all else is push

_MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_MAX_UNREAD_BYTES = 256 * 1024  # so much of an unwanted body is read to keep the connection, as by Go's server

_PIECE_BYTES = 64 * 1024
_POLL_S = 0.01  # how soon a stalled exchange notices that its client left, and the accept loop that it is to stop
_SETTLE_S = 1.0  # how long a reader of the log waits for exchanges under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked. ``headers`` have lower-case names; repeated ones are joined by a comma."""

    method: str
    path: str  # without the query
    query: str  # raw
    headers: dict[str, str]
    scheme: str

    @property
    def repository(self) -> str | None:
        """The repository that the path names, valid or not."""
        route = _UPLOAD_ROUTE.fullmatch(self.path) or _ROUTE.fullmatch(self.path)
        return route["name"] if route else None

    @property
    def mounted_from(self) -> str | None:
        """The repository that a blob is to be mounted from."""
        query = parse_qs(self.query)
        return query["from"][0] if self.method == "POST" and {"mount", "from"} <= query.keys() else None

    @property
    def needs(self) -> list[tuple[str, str]]:
        """What a token has to be good for: resources, each with an action."""
        if self.path == _CATALOG_PATH:
            return [("registry:catalog", "*")]
        own = [(f"repository:{self.repository}", _ACTIONS.get(self.method, "push"))] if self.repository else []
        return own + ([(f"repository:{self.mounted_from}", "pull")] if self.mounted_from else [])

    @property
    def is_upload(self) -> bool:
        """Whether it opens an upload or goes to one."""
        return _UPLOAD_ROUTE.fullmatch(self.path) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An exchange that has ended, well or not; ``sent`` and ``received`` count body bytes, status 0 is no answer."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int
    sent: int
    received: int = 0


@dataclass(frozen=True, slots=True)
class Basic:
    """One user, named with every request."""

    user: str
    password: str = field(repr=False)

    def refusal(self, request: Request) -> Response | None:
        """Refuse all but exactly these credentials."""
        if request.headers.get("authorization") == _basic(self.user, self.password):
            return None
        return _unauthorized('Basic realm="fake"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """Tokens from ``/token``, for anybody or one user, each good for the scopes it was asked for, less the ``withheld``.

    ``expires_in`` (seconds) is only told to the client: here a token ends when it is revoked, so no test needs a clock.
    ``realm`` names another token endpoint; a registry given the same ``Bearer`` serves it.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    expires_in: int = 300
    refuse_anonymous: bool = False
    realm: str | None = None
    withheld: frozenset[str] = frozenset()  # repositories
    grants: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False)  # token -> scopes

    def refusal(self, request: Request) -> Response | None:
        """Refuse a missing or unknown token, and one not granted for the repository."""
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
        """Answer the token endpoint: anonymous, or with the right Basic credentials."""
        query = parse_qs(request.query)
        given = request.headers.get("authorization")
        if (given is None and self.refuse_anonymous) or given not in {None, _basic(self.user, self.password)}:
            return _unauthorized('Basic realm="fake"')
        if query.get("service") != ["fake"]:
            return Response.refusal(400, "UNSUPPORTED", "the service must be named once, as in the challenge")
        token = secrets.token_urlsafe(16)
        scopes = [scope for value in query.get("scope", []) for scope in value.split()]
        self.grants[token] = tuple(scope for scope in scopes if scope.split(":")[1] not in self.withheld)
        return Response.of_json(200, {"token": token, "expires_in": self.expires_in})

    def _challenge(self, request: Request, *, error: str | None = None) -> Response:
        realm = self.realm or f"{request.scheme}://{request.headers['host']}{_TOKEN_PATH}"
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


class FakeRegistry:
    """The registry; it listens from construction, serves inside its ``with`` block, and is safe to fill meanwhile.

    ``tls`` is a server-side context. ``open_ranges=False`` answers 416 to ``bytes=N-``, as go-containerregistry does.
    ``mounts`` says where blobs are mounted from: the repository named, any one of its own choice, or none. ``referrers=False``
    leaves subjects to the client and has no API for them, ``filters=False`` has one that ignores filters, and ``page_entries``
    is what one of its pages has at most. ``sparse`` takes indexes of which manifests are missing. ``deletes`` says what is
    deleted: tags and manifests, manifests alone as by CNCF distribution 2.8, or nothing. ``uploads`` are the sessions, which
    may be limited.
    """

    def __init__(
        self,
        *,
        auth: Basic | Bearer | None = None,
        tls: ssl.SSLContext | None = None,
        open_ranges: bool = False,
        mounts: Literal["named", "any", "none"] = "named",
        referrers: bool = True,
        filters: bool = True,
        page_entries: int = 1000,
        sparse: bool = False,
        deletes: Literal["all", "manifests", "nothing"] = "all",
        uploads: Uploads | None = None,
    ) -> None:
        """Bind a free port of 127.0.0.1."""
        self._auth = auth
        self._bearer = auth if isinstance(auth, Bearer) else None
        self._open_ranges = open_ranges
        self._mounts = mounts
        self._referrers = referrers
        self._filters = filters
        self._page_entries = page_entries
        self._sparse = sparse
        self._deletes = deletes
        self.uploads = uploads or Uploads()
        self._blobs: dict[tuple[str, str], bytes] = {}  # (repository, digest)
        self._manifests: dict[tuple[str, str], tuple[str, bytes]] = {}  # (repository, digest) -> media type, content
        self._tags: dict[tuple[str, str], str] = {}  # (repository, tag) -> digest
        self._faults: list[tuple[Fault, Iterator[int]]] = []  # with the count of matching requests
        self._faults_lock = threading.Lock()
        self._log = _Log()
        self._server = _Server(self._respond, self._log, tls)
        self.scheme = self._server.scheme
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.names = {self.host}  # other hosts that it answers to, as behind a proxy

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut all connections, stalled ones too, and wait for their threads."""
        self._server.stop()

    def put_blob(self, repository: str, content: bytes, *, algorithm: str = "sha256") -> str:
        """Store a blob; return its digest."""
        digest = _digest(content, algorithm)
        self._blobs[repository, digest] = content
        return digest

    def put_manifest(
        self, repository: str, content: bytes, media_type: str, *, tag: str | None = None, algorithm: str = "sha256"
    ) -> str:
        """Store a manifest as it is, and let ``tag`` point to it; return its digest."""
        digest = _digest(content, algorithm)
        self._manifests[repository, digest] = (media_type, content)
        if tag is not None:
            self._tags[repository, tag] = digest
        return digest

    def lose(self, repository: str, digest: str) -> None:
        """Have a blob or manifest there no longer, whatever names it or stands for it."""
        self._blobs.pop((repository, digest), None)
        self._manifests.pop((repository, digest), None)

    def untag(self, repository: str, tag: str) -> None:
        """Have a tag there no longer; what it stood for stays."""
        self._tags.pop((repository, tag), None)

    def blob(self, repository: str, digest: str) -> bytes | None:
        """The blob of a repository; None where it has none."""
        return self._blobs.get((repository, digest))

    def manifest(self, repository: str, key: str) -> tuple[str, bytes] | None:
        """The media type and content of a manifest by tag or digest; None where there is none."""
        return self._manifests.get((repository, self._tags.get((repository, key), key)))

    def inject(self, fault: Fault) -> None:
        """Strike matching requests from now on; several faults of one request act in the order of injection."""
        with self._faults_lock:
            self._faults.append((fault, itertools.count(1)))

    def revoke_tokens(self) -> None:
        """Forget every token: the next request with one gets 401 ``invalid_token``."""
        if self._bearer:
            self._bearer.grants.clear()

    @property
    def requests(self) -> list[Recorded]:
        """The exchanges that have ended, in the order in which they began.

        Those under way get a second to end: what a client has seen the end of is there, but do not ask during a stall.
        """
        return self._log.ended()

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        return self._server.accepted

    def asked(self, method: str, path: str) -> list[Recorded]:
        """Return the recorded exchanges of this method whose whole path matches the regex ``path``."""
        return [one for one in self.requests if one.method == method and re.fullmatch(path, one.path)]

    def _respond(self, request: Request, incoming: "_Incoming") -> Response | None:
        """Prepare the answer, None for none; faults strike only what has passed the door."""
        if refusal := self._refusal(request):
            return refusal
        actions = [fault.action for fault in self._due(request)]
        early = next((action for action in actions if isinstance(action, Drop | Refuse)), None)
        if isinstance(early, Refuse):
            return early.apply(Response.of(500))
        body = incoming.read(early.after if early else None)
        if early or incoming.left:
            if route := _UPLOAD_ROUTE.fullmatch(request.path):
                self.uploads.keep(_step(request, route, body))
            return None
        response = replace(self._answer(request, body), path=request.path)
        for action in actions:
            response = action.apply(response)
        return response

    def _due(self, request: Request) -> list[Fault]:
        with self._faults_lock:
            matching = [entry for entry in self._faults if entry[0].matches(request.method, request.path)]
            return [fault for fault, count in matching if fault.strikes(next(count))]

    def _refusal(self, request: Request) -> Response | None:
        if request.headers.get("host") not in self.names:
            return Response.refusal(400, "UNSUPPORTED", f"this is {self.host}")
        if request.method not in _allowed(request):
            headers = (("Allow", ", ".join(sorted(_allowed(request)))),)
            return Response.refusal(405, "UNSUPPORTED", "this is not done here", headers)
        if request.method in _WRITES - {"DELETE"} and not request.headers.get("content-length", "").isdecimal():
            return Response.refusal(411, "SIZE_INVALID", "expected a Content-Length", (("Connection", "close"),))
        if "*" in _accepted(request):
            return Response.refusal(400, "UNSUPPORTED", "Accept: * is no media range, */* is")
        if self._auth is None or request.path == _TOKEN_PATH:
            return None
        return self._auth.refusal(request)

    def _answer(self, request: Request, body: bytes) -> Response:
        if above := self._above_repositories(request):
            return above
        route = _UPLOAD_ROUTE.fullmatch(request.path) or _ROUTE.fullmatch(request.path)
        if route is None:
            return Response.refusal(404, "UNSUPPORTED", "no such endpoint")
        if not _NAME.fullmatch(route["name"]):
            return Response.refusal(400, "NAME_INVALID", f"invalid repository name {route['name']}")
        if request.is_upload or request.method not in _READS:
            return self._change(request, route, body)
        return self._read(request, route)

    def _above_repositories(self, request: Request) -> Response | None:
        """Answer what is asked of the registry as a whole."""
        if self._bearer and request.path == _TOKEN_PATH:
            return self._bearer.answer(request)
        if request.path == "/v2/":
            return Response.of_json(200, {})
        if request.path == _CATALOG_PATH:
            names = {repository for repository, _ in [*self._manifests, *self._blobs]}
            return lists.page(request.path, request.query, "repositories", names, most=self._page_entries)
        return None

    def _read(self, request: Request, route: re.Match[str]) -> Response:
        kinds = {"manifests": self._manifest, "blobs": self._blob, "tags": self._tag_list, "referrers": self._referrer_list}
        answer = kinds[route["kind"]]
        return answer(request, route["name"], route["key"])

    def _manifest(self, request: Request, name: str, key: str) -> Response:
        if "range" in request.headers:
            return Response.refusal(400, "UNSUPPORTED", "a manifest has no ranges")
        if ":" in key and not _DIGEST.fullmatch(key):
            return Response.refusal(400, "DIGEST_INVALID", f"invalid digest {key}")
        digest = self._tags.get((name, key), key)
        if (name, digest) not in self._manifests:
            return Response.refusal(404, "MANIFEST_UNKNOWN", f"manifest {key} unknown")
        media_type, content = self._manifests[name, digest]
        return _unacceptable(request, media_type) or _content(content, digest, media_type)

    def _blob(self, request: Request, name: str, key: str) -> Response:
        if not _DIGEST.fullmatch(key):
            return Response.refusal(400, "DIGEST_INVALID", f"invalid digest {key}")
        if (name, key) not in self._blobs:
            return Response.refusal(404, "BLOB_UNKNOWN", f"blob {key} unknown")
        whole = _content(self._blobs[name, key], key, "application/octet-stream")
        if "range" not in request.headers:
            return whole
        return replace(_part(whole, request.headers["range"], open_ranges=self._open_ranges), unranged=whole)

    def _change(self, request: Request, route: re.Match[str], body: bytes) -> Response:
        """Answer about an upload, or store or delete a manifest."""
        if request.method == "DELETE" and not request.is_upload:
            return self._delete(route["name"], route["key"])
        if not request.is_upload:
            return self._store(request, route["name"], route["key"], body)
        if request.method == "POST":
            return self._mount(request, route["name"]) or self.uploads.begin(route["name"])
        response, content = self.uploads.take(_step(request, route, body))
        if content is not None:
            self._blobs[route["name"], response.header("Docker-Content-Digest") or ""] = content
        return response

    def _mount(self, request: Request, name: str) -> Response | None:
        """Take a blob over from another repository, if that is asked for and can be done."""
        digest = parse_qs(request.query).get("mount", [""])[0]
        places = [repository for repository, held in list(self._blobs) if held == digest]
        if self._mounts == "named":
            places = [place for place in places if place == request.mounted_from]
        if not places or self._mounts == "none":
            return None
        self._blobs[name, digest] = self._blobs[places[0], digest]
        return created(name, "blobs", digest)

    def _store(self, request: Request, name: str, key: str, body: bytes) -> Response:
        """Store a manifest."""
        algorithm = key.partition(":")[0] if _DIGEST.fullmatch(key) else "sha256"
        digest = _digest(body, algorithm)
        if refusal := self._refuse_manifest(request, name, body):
            return refusal
        if ":" in key and key != digest:
            return Response.refusal(400, "DIGEST_INVALID", f"the content has {digest}")
        if ":" not in key and not _TAG.fullmatch(key):
            return Response.refusal(400, "MANIFEST_INVALID", f"invalid tag {key}")
        self.put_manifest(name, body, request.headers["content-type"], tag=None if ":" in key else key, algorithm=algorithm)
        subject = json.loads(body).get("subject")
        noted: Headers = (("OCI-Subject", subject["digest"]),) if subject and self._referrers else ()
        return created(name, "manifests", digest).with_headers(noted)

    def _delete(self, name: str, key: str) -> Response:
        """Delete a tag, or a manifest with its tags."""
        is_digest = _DIGEST.fullmatch(key) is not None
        if self._deletes == "nothing":
            return Response.refusal(405, "UNSUPPORTED", "deleting is disabled")
        if not is_digest and (self._deletes == "manifests" or not _TAG.fullmatch(key)):
            return Response.refusal(400, "DIGEST_INVALID", f"{key} is no digest")
        held: dict[tuple[str, str], Any] = self._manifests if is_digest else self._tags
        if held.pop((name, key), None) is None:
            return Response.refusal(404, "MANIFEST_UNKNOWN", f"manifest {key} unknown")
        for place, digest in list(self._tags.items()):
            if place[0] == name and digest == key:
                del self._tags[place]
        return Response.of(202)

    def _refuse_manifest(self, request: Request, name: str, body: bytes) -> Response | None:
        if len(body) > _MAX_MANIFEST_BYTES:
            return Response.refusal(413, "SIZE_INVALID", f"more than {_MAX_MANIFEST_BYTES} bytes")
        document = json.loads(body)
        if document.get("mediaType", request.headers.get("content-type")) != request.headers.get("content-type"):
            return Response.refusal(400, "MANIFEST_INVALID", "Content-Type and mediaType differ")
        named = [*document.get("layers", []), *filter(None, [document.get("config")])]
        blobs = [one["digest"] for one in named if not one.get("urls")]  # what others have need not be here
        missing = [one for one in blobs if (name, one) not in self._blobs]
        listed = [] if self._sparse else document.get("manifests", [])
        missing += [one["digest"] for one in listed if (name, one["digest"]) not in self._manifests]
        return Response.refusal(404, "MANIFEST_BLOB_UNKNOWN", f"{missing[0]} unknown") if missing else None

    def _tag_list(self, request: Request, name: str, key: str) -> Response:
        if key != "list":
            return Response.refusal(404, "UNSUPPORTED", "no such endpoint")
        if not any(repository == name for repository, _ in [*self._manifests, *self._blobs]):
            return Response.refusal(404, "NAME_UNKNOWN", f"repository {name} unknown")
        tags = [tag for repository, tag in list(self._tags) if repository == name]
        return lists.page(request.path, request.query, "tags", tags, most=self._page_entries, about={"name": name})

    def _referrer_list(self, request: Request, name: str, key: str) -> Response:
        """The page of referrers that follows the query's ``last``."""
        if not self._referrers:
            return Response.refusal(404, "UNSUPPORTED", "no such endpoint")
        if not _DIGEST.fullmatch(key):
            return Response.refusal(400, "DIGEST_INVALID", f"invalid digest {key}")
        query = parse_qs(request.query)
        found = [one for one in map(_referrer, list(self._manifests.items())) if one[0] == (name, key)]
        entries = sorted((entry for _, entry in found), key=lambda entry: str(entry["digest"]))
        headers: Headers = (("Content-Type", OCI_INDEX),)
        if self._filters and "artifactType" in query:
            entries = [entry for entry in entries if entry.get("artifactType") == query["artifactType"][0]]
            headers += (("OCI-Filters-Applied", "artifactType"),)
        left = [entry for entry in entries if str(entry["digest"]) > query.get("last", [""])[0]]
        page = left[: self._page_entries]
        if len(page) < len(left):
            headers += lists.next_page(request.path, request.query, page[-1]["digest"])
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page}
        return _unacceptable(request, OCI_INDEX) or Response.of(200, json.dumps(index).encode(), headers)


def _referrer(stored: tuple[tuple[str, str], tuple[str, bytes]]) -> tuple[tuple[str, str | None], dict[str, Any]]:
    """The repository and subject of a manifest, and how it is listed there."""
    (repository, digest), (media_type, content) = stored
    document = json.loads(content)
    artifact_type = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
    entry = {"mediaType": media_type, "digest": digest, "size": len(content), "annotations": document.get("annotations", {})}
    if artifact_type:
        entry["artifactType"] = artifact_type
    return (repository, (document.get("subject") or {}).get("digest")), entry


def _allowed(request: Request) -> set[str]:
    """The methods of an endpoint."""
    if route := _UPLOAD_ROUTE.fullmatch(request.path):
        return {"GET", "PATCH", "PUT", "DELETE"} if route["session"] else {"POST"}
    route = _ROUTE.fullmatch(request.path)
    return {*_READS, "PUT", "DELETE"} if route and route["kind"] == "manifests" else {*_READS}


def _step(request: Request, route: re.Match[str], body: bytes) -> Step:
    return Step(
        method=request.method,
        repository=route["name"],
        session=route["session"],
        query=request.query,
        headers=request.headers,
        body=body,
    )


def _digest(content: bytes, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def _content(content: bytes, digest: str, media_type: str) -> Response:
    return Response.of(200, content, (("Content-Type", media_type), ("Docker-Content-Digest", digest)))


def _accepted(request: Request) -> set[str]:
    """Return the media ranges named, without parameters; none without ``Accept``, which RFC 9110 reads as all."""
    return {part.partition(";")[0].strip() for part in request.headers.get("accept", "").split(",")}


def _unacceptable(request: Request, media_type: str) -> Response | None:
    accepted = _accepted(request)
    if media_type in accepted:
        return None
    if media_type == OCI_INDEX:  # not even by */*: this is what CNCF distribution does
        message = "OCI index found, but accept header does not support OCI indexes"
        return Response.refusal(404, "MANIFEST_UNKNOWN", message)
    if "*/*" in accepted:
        return None
    return Response.refusal(404, "MANIFEST_UNKNOWN", f"manifest is {media_type}, which is not accepted")


def _part(whole: Response, asked: str, *, open_ranges: bool) -> Response:
    """Cut the range ``asked`` out of the answer ``whole``, or refuse it."""
    size = len(whole.body)
    span = _RANGE.fullmatch(asked)
    if span is None:
        return Response.refusal(400, "UNSUPPORTED", f"cannot read the range {asked}")
    is_open = not span["last"]
    first, last = int(span["first"]), size - 1 if is_open else int(span["last"])
    if first >= size or (is_open and not open_ranges):
        unsatisfied = (("Content-Range", f"bytes */{size}"),)
        return Response.refusal(416, "RANGE_INVALID", f"cannot satisfy {asked}", unsatisfied)
    if last < first or (first == 0 and last >= size - 1):
        return Response.refusal(400, "UNSUPPORTED", f"{asked} is none or all of {size} bytes, so no range")
    last = min(last, size - 1)
    content_range: Headers = (("Content-Range", f"bytes {first}-{last}/{size}"),)
    return replace(whole.with_body(whole.body[first : last + 1]).with_headers(content_range), status=206)


class _Incoming:
    """The body of a request, read as far as somebody wants it."""

    def __init__(self, stream: BufferedIOBase, length: int) -> None:
        self._stream = stream
        self.left = length
        self.received = 0

    def read(self, limit: int | None = None) -> bytes:
        """Read all, or no more than ``limit`` bytes; less where the client left."""
        wanted = self.left if limit is None else min(limit, self.left)
        pieces = []
        while wanted and (piece := self._piece(min(wanted, _PIECE_BYTES))):
            pieces.append(piece)
            wanted -= len(piece)
            self.left -= len(piece)
            self.received += len(piece)
        return b"".join(pieces)

    def skip(self) -> bool:
        """Get rid of what nobody wanted; whether that was possible, and the connection is of further use."""
        taken = self.received
        self.read(_MAX_UNREAD_BYTES)
        self.received = taken
        return not self.left

    def _piece(self, limit: int) -> bytes:
        try:
            return self._stream.read1(limit)
        except OSError:  # the client left
            return b""


class _Log:
    """A place for every exchange, in the order in which they began; None in the place of one under way."""

    def __init__(self) -> None:
        self._places: list[Recorded | None] = []
        self._changed = threading.Condition()

    def begin(self) -> int:
        """Take the next place; to be called before the client can see a byte of the answer."""
        with self._changed:
            self._places.append(None)
            return len(self._places) - 1

    def end(self, place: int, recorded: Recorded) -> None:
        with self._changed:
            self._places[place] = recorded
            self._changed.notify_all()

    def ended(self) -> list[Recorded]:
        """Return the exchanges once all have ended; what does not end in time (a stall) is left out."""
        with self._changed:
            self._changed.wait_for(lambda: None not in self._places, _SETTLE_S)
            return [recorded for recorded in self._places if recorded]


class _Server(ThreadingHTTPServer):
    """Threads and connections: one daemon thread for each, all of them ended by :meth:`stop`."""

    request_queue_size = 128

    def __init__(self, respond: Callable[[Request, _Incoming], Response | None], log: _Log, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self.log = log
        self.scheme = "https" if tls else "http"
        if tls:  # the handshake is left to the connection's thread, lest a silent client block the others
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._accepting = threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True)
        self._connections: list[tuple[threading.Thread, socket.socket]] = []

    @property
    def accepted(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        self._accepting.start()

    def stop(self) -> None:
        self.shutdown()
        self._accepting.join()
        self.server_close()
        for thread, connection in self._connections:
            _shut(connection)
            thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, and remember both: the parent forgets daemon threads."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._connections.append((thread, request))
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent about clients that leave or fail the handshake, but not about mistakes in this file."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _shut(connection: socket.socket) -> None:
    """Wake the thread that blocks on ``connection``, whatever it waits for."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS, whose state belongs to that thread
    except OSError:
        return  # it has ended already


class _Handler(BaseHTTPRequestHandler):
    """One connection; also the :class:`~tests.fakes.faults.Wire` that interruptions act on."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    _sent = 0

    def _serve(self) -> None:
        request = self._request()
        length = request.headers.get("content-length", "")
        incoming = _Incoming(self.rfile, int(length) if length.isdecimal() else 0)
        self._sent = 0
        place = self.server.log.begin()
        response: Response | None = None
        try:
            response = self.server.respond(request, incoming)
            if response is None:
                self.reset()
                self.close_connection = True
                return
            self._send(response)
            self.close_connection |= not incoming.skip()
        finally:
            self.server.log.end(place, self._recorded(request, response, incoming.received))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the parent's names

    def _request(self) -> Request:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers}
        return Request(method=self.command, path=path, query=query, headers=headers, scheme=self.server.scheme)

    def _recorded(self, request: Request, response: Response | None, received: int) -> Recorded:
        return Recorded(
            method=request.method,
            path=request.path,
            query=request.query,
            headers=request.headers,
            status=response.status if response else 0,
            sent=self._sent,
            received=received,
        )

    def _send(self, response: Response) -> None:
        if not response.status:
            self.close_connection = True
            self.wait(None)
            return
        self.send_response_only(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            body = response.body[:0]
        else:
            body = response.body
            # where the length lies or is missing, only the end of the connection tells the end of the body
            self.close_connection |= response.header("Content-Length") != str(len(body))
        stop = response.interruption
        if stop is None:
            self._write(body)
            return
        self._write(body[: stop.after])
        if stop.interrupt(self):
            self._write(body[stop.after :])
        else:
            self.close_connection = True

    def _write(self, body: memoryview) -> None:
        for start in range(0, len(body), _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            self.wfile.write(piece)
            self._sent += len(piece)

    def reset(self) -> None:
        """Close with RST: a lingering time of zero throws away what is not sent."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # holds the descriptor open otherwise
        self.connection.close()

    def wait(self, release: threading.Event | None) -> bool:
        """Wait for ``release``, or for the connection to turn readable: by a client that left, or by our stop()."""
        gate = release or threading.Event()
        while not gate.wait(_POLL_S):
            if select.select([self.connection], [], [], 0)[0]:
                return False
        return True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Stay silent."""
