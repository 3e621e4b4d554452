"""A strict OCI registry on loopback, after the distribution spec 1.1: pull, push and delete; and Docker's catalog.

Strict: where registries differ, it behaves like the least forgiving known registry, so that a client that works with it works
with all. It records every exchange, so that tests can assert on the requests. It imports nothing of the project, so that one
mistake cannot hide on both sides. Intentional failures are in ``faults.py``, the wire in ``wire.py``, access control in
``access.py``, upload sessions in ``uploads.py``, lists in ``lists.py``.
"""

import hashlib
import itertools
import json
import re
import ssl
import threading
from dataclasses import replace
from typing import Any, Literal, Self
from urllib.parse import parse_qs

from tests.fakes import lists
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import Drop, Fault, Headers, Refuse, Response
from tests.fakes.request import (
    CATALOG_PATH,
    DIGEST,
    NAME,
    READS,
    ROUTE,
    TAG,
    TOKEN_PATH,
    UPLOAD_ROUTE,
    WRITES,
    Recorded,
    Request,
)
from tests.fakes.uploads import Step, Uploads, created
from tests.fakes.wire import Incoming, Log, Server

OCI_INDEX = "application/vnd.oci.image.index.v1+json"

_MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_RANGE = re.compile(r"bytes=(?P<first>\d+)-(?P<last>\d*)")  # one range with a start: suffixes and lists are refused


class FakeRegistry:
    """The registry. It listens from construction, serves inside its ``with`` block, and may be filled meanwhile.

    ``tls`` is a server-side context. ``open_ranges=False`` answers 416 to ``bytes=N-``, as go-containerregistry does.
    ``mounts`` is the source of mounted blobs: the named repository, any repository, or none. ``referrers=False`` has no
    referrers API, ``filters=False`` has an API without filters, and ``page_entries`` is the maximum of a page. ``sparse``
    accepts indexes with missing manifests. ``deletes`` selects what may be deleted: tags and manifests, only manifests as in
    CNCF distribution 2.8, or nothing. ``uploads`` are the sessions, which may be limited. ``max_request_bytes`` is the limit of
    a proxy in front of the registry, and ``max_names`` the limit of names per page: both answer 413 above the limit, as Azure's
    proxy and Quay do.
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
        max_request_bytes: int | None = None,
        max_names: int | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        """Bind a free port of a loopback address."""
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
        self._max_request_bytes, self._max_names = max_request_bytes, max_names
        self._blobs: dict[tuple[str, str], bytes] = {}  # (repository, digest)
        self._manifests: dict[tuple[str, str], tuple[str, bytes]] = {}  # (repository, digest) -> media type, content
        self._tags: dict[tuple[str, str], str] = {}  # (repository, tag) -> digest
        self._faults: list[tuple[Fault, itertools.count[int]]] = []  # with the count of matching requests
        self._faults_lock = threading.Lock()
        self._log = Log()
        self._server = Server(self._respond, self._log, tls, address)
        self.scheme = self._server.scheme
        self.host = f"{address}:{self._server.server_port}"
        self.names = {self.host}  # the accepted Host headers, several behind a proxy

    def __enter__(self) -> Self:
        """Start to serve."""
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections, also stalled ones, and wait for their threads."""
        self._server.stop()

    def put_blob(self, repository: str, content: bytes, *, algorithm: str = "sha256") -> str:
        """Store a blob; return its digest."""
        digest = _digest(content, algorithm)
        self._blobs[repository, digest] = content
        return digest

    def put_manifest(
        self, repository: str, content: bytes, media_type: str, *, tag: str | None = None, algorithm: str = "sha256"
    ) -> str:
        """Store a manifest unchanged, and let ``tag`` point to it; return its digest."""
        digest = _digest(content, algorithm)
        self._manifests[repository, digest] = (media_type, content)
        if tag is not None:
            self._tags[repository, tag] = digest
        return digest

    def lose(self, repository: str, digest: str) -> None:
        """Remove a blob or manifest, but no tag or manifest that refers to it."""
        self._blobs.pop((repository, digest), None)
        self._manifests.pop((repository, digest), None)

    def untag(self, repository: str, tag: str) -> None:
        """Remove a tag; its manifest stays."""
        self._tags.pop((repository, tag), None)

    def blob(self, repository: str, digest: str) -> bytes | None:
        """Return a blob of a repository; None if it is missing."""
        return self._blobs.get((repository, digest))

    def manifest(self, repository: str, key: str) -> tuple[str, bytes] | None:
        """Return the media type and content of a manifest by tag or digest; None if it is missing."""
        return self._manifests.get((repository, self._tags.get((repository, key), key)))

    def inject(self, fault: Fault) -> None:
        """Strike matching requests from now on; several faults of one request apply in the order of injection."""
        with self._faults_lock:
            self._faults.append((fault, itertools.count(1)))

    def change_auth(self, auth: Basic | Bearer) -> None:
        """Require other credentials from now on."""
        self._auth = auth
        self._bearer = auth if isinstance(auth, Bearer) else None

    def revoke_tokens(self) -> None:
        """Forget every token: the next request with one gets 401 ``invalid_token``."""
        if self._bearer:
            self._bearer.grants.clear()

    @property
    def requests(self) -> list[Recorded]:
        """The finished exchanges, in the order in which they started.

        Exchanges in flight get a second to finish, so that a response that a client has read is included. Do not use this
        during a stall.
        """
        return self._log.wait_for_all()

    @property
    def connections(self) -> int:
        """Number of connections so far."""
        return self._server.accepted

    def find_requests(self, method: str, path: str) -> list[Recorded]:
        """Return the recorded exchanges of this method whose whole path matches the regex ``path``."""
        return [one for one in self.requests if one.method == method and re.fullmatch(path, one.path)]

    def _respond(self, request: Request, incoming: Incoming) -> Response | None:
        """Prepare the response, None for none; faults strike only requests with access."""
        if refusal := self._refusal(request) or self._too_large(request):
            return refusal
        actions = [fault.action for fault in self._due(request)]
        early = next((action for action in actions if isinstance(action, Drop | Refuse)), None)
        if isinstance(early, Refuse):
            return early.apply(Response.of(500))
        body = incoming.read(early.after if early else None)
        if early or incoming.left:
            if route := UPLOAD_ROUTE.fullmatch(request.path):
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
        if request.method in WRITES - {"DELETE"} and not request.headers.get("content-length", "").isdecimal():
            return Response.refusal(411, "SIZE_INVALID", "expected a Content-Length", (("Connection", "close"),))
        if "*" in _accepted(request):
            return Response.refusal(400, "UNSUPPORTED", "Accept: * is no media range, */* is")
        if self._auth is None or request.path == TOKEN_PATH:
            return None
        return self._auth.refusal(request)

    def _too_large(self, request: Request) -> Response | None:
        if self._max_request_bytes is not None and int(request.headers.get("content-length", 0)) > self._max_request_bytes:
            return Response.of(413, b"<html>413 Request Entity Too Large</html>", (("Connection", "close"),))
        names = parse_qs(request.query).get("n", ["0"])[0]
        if self._max_names is not None and names.isdecimal() and int(names) > self._max_names:
            return Response.of_json(413, {"error": "the page is too large"})
        return None

    def _answer(self, request: Request, body: bytes) -> Response:
        if above := self._above_repositories(request):
            return above
        route = UPLOAD_ROUTE.fullmatch(request.path) or ROUTE.fullmatch(request.path)
        if route is None:
            return Response.refusal(404, "UNSUPPORTED", "no such endpoint")
        if not NAME.fullmatch(route["name"]):
            return Response.refusal(400, "NAME_INVALID", f"invalid repository name {route['name']}")
        if request.is_upload or request.method not in READS:
            return self._change(request, route, body)
        return self._read(request, route)

    def _above_repositories(self, request: Request) -> Response | None:
        """Answer a request to the registry as a whole."""
        if self._bearer and request.path == TOKEN_PATH:
            return self._bearer.answer(request)
        if request.path == "/v2/":
            return Response.of_json(200, {})
        if request.path == CATALOG_PATH:
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
        if ":" in key and not DIGEST.fullmatch(key):
            return Response.refusal(400, "DIGEST_INVALID", f"invalid digest {key}")
        digest = self._tags.get((name, key), key)
        if (name, digest) not in self._manifests:
            return Response.refusal(404, "MANIFEST_UNKNOWN", f"manifest {key} unknown")
        media_type, content = self._manifests[name, digest]
        return _unacceptable(request, media_type) or _content(content, digest, media_type)

    def _blob(self, request: Request, name: str, key: str) -> Response:
        if not DIGEST.fullmatch(key):
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
        """Mount a blob from another repository, if this is requested and possible."""
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
        algorithm = key.partition(":")[0] if DIGEST.fullmatch(key) else "sha256"
        digest = _digest(body, algorithm)
        if refusal := self._refuse_manifest(request, name, body):
            return refusal
        if ":" in key and key != digest:
            return Response.refusal(400, "DIGEST_INVALID", f"the content has {digest}")
        if ":" not in key and not TAG.fullmatch(key):
            return Response.refusal(400, "MANIFEST_INVALID", f"invalid tag {key}")
        self.put_manifest(name, body, request.headers["content-type"], tag=None if ":" in key else key, algorithm=algorithm)
        subject = json.loads(body).get("subject")
        noted: Headers = (("OCI-Subject", subject["digest"]),) if subject and self._referrers else ()
        return created(name, "manifests", digest).with_headers(noted)

    def _delete(self, name: str, key: str) -> Response:
        """Delete a tag, or a manifest with its tags."""
        is_digest = DIGEST.fullmatch(key) is not None
        if self._deletes == "nothing":
            return Response.refusal(405, "UNSUPPORTED", "deleting is disabled")
        if not is_digest and (self._deletes == "manifests" or not TAG.fullmatch(key)):
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
        """Return the page of referrers after the query's ``last``."""
        if not self._referrers:
            return Response.refusal(404, "UNSUPPORTED", "no such endpoint")
        if not DIGEST.fullmatch(key):
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
    """Return the repository and subject of a manifest, and its entry in the list of referrers."""
    (repository, digest), (media_type, content) = stored
    document = json.loads(content)
    artifact_type = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
    entry = {"mediaType": media_type, "digest": digest, "size": len(content), "annotations": document.get("annotations", {})}
    if artifact_type:
        entry["artifactType"] = artifact_type
    return (repository, (document.get("subject") or {}).get("digest")), entry


def _allowed(request: Request) -> set[str]:
    """Return the methods of an endpoint."""
    if route := UPLOAD_ROUTE.fullmatch(request.path):
        return {"GET", "PATCH", "PUT", "DELETE"} if route["session"] else {"POST"}
    route = ROUTE.fullmatch(request.path)
    return {*READS, "PUT", "DELETE"} if route and route["kind"] == "manifests" else {*READS}


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
    """Return the media ranges in Accept, without parameters; none without ``Accept``, which means any type (RFC 9110)."""
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


def _part(whole: Response, wanted: str, *, open_ranges: bool) -> Response:
    """Cut the requested range out of the response ``whole``, or refuse it."""
    size = len(whole.body)
    span = _RANGE.fullmatch(wanted)
    if span is None:
        return Response.refusal(400, "UNSUPPORTED", f"cannot read the range {wanted}")
    is_open = not span["last"]
    first, last = int(span["first"]), size - 1 if is_open else int(span["last"])
    if first >= size or (is_open and not open_ranges):
        unsatisfied = (("Content-Range", f"bytes */{size}"),)
        return Response.refusal(416, "RANGE_INVALID", f"cannot satisfy {wanted}", unsatisfied)
    if last < first or (first == 0 and last >= size - 1):
        return Response.refusal(400, "UNSUPPORTED", f"{wanted} is none or all of {size} bytes, so no range")
    last = min(last, size - 1)
    content_range: Headers = (("Content-Range", f"bytes {first}-{last}/{size}"),)
    return replace(whole.with_body(whole.body[first : last + 1]).with_headers(content_range), status=206)
