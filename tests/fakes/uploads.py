"""The upload sessions of the fake registry, after the distribution spec 1.1, "Pushing Blobs".

Strict: each response that changes a session has a new Location, and only the latest Location accepts bytes. Chunks arrive in
order, with their range and their length. The registry decides if a session keeps the bytes of a broken request.
"""

import hashlib
import re
import secrets
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from tests.fakes.faults import Headers, Response

_CONTENT_RANGE = re.compile(r"(?P<first>\d+)-(?P<last>\d+)")


@dataclass(slots=True)
class _Session:
    repository: str
    state: str
    content: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A request to a session. Its query has the `_state` of a Location."""

    method: str
    repository: str
    session: str
    query: str
    headers: dict[str, str]
    body: bytes


class Uploads:
    """All sessions of one registry. Thread-safe: one step at a time.

    `min_chunk_bytes` is announced and enforced. `max_chunk_bytes` bounds a PATCH, with GHCR's answer.
    """

    def __init__(self, *, min_chunk_bytes: int | None = None, max_chunk_bytes: int | None = None) -> None:
        self._min, self._max = min_chunk_bytes, max_chunk_bytes
        self._sessions: dict[str, _Session] = {}
        self._guard = threading.Lock()

    @property
    def open(self) -> int:
        """Number of sessions that are neither closed nor cancelled."""
        return len(self._sessions)

    def begin(self, repository: str) -> Response:
        """Open a session: 202 and its Location."""
        name = secrets.token_hex(8)
        with self._guard:
            self._sessions[name] = session = _Session(repository, "")
            announced: Headers = (("OCI-Chunk-Min-Length", str(self._min)),) if self._min else ()
            answer = self._describe(202, name, session)
        return answer.with_headers(announced)

    def forget(self) -> None:
        """Lose every session, as a registry does after a restart."""
        with self._guard:
            self._sessions.clear()

    def take(self, step: Step) -> tuple[Response, bytes | None]:
        """Execute a step. Return the response, and the blob that the step completes."""
        with self._guard:
            session = self._sessions.get(step.session)
            if session is None or session.repository != step.repository:
                return Response.refusal(404, "BLOB_UPLOAD_UNKNOWN", "no such upload"), None
            if step.method == "GET":
                return self._describe(204, step.session, session), None
            if step.method == "DELETE":
                del self._sessions[step.session]
                return Response.of(204), None
            if parse_qs(step.query).get("_state") != [session.state]:
                return Response.refusal(400, "BLOB_UPLOAD_INVALID", "not the latest Location"), None
            if step.headers.get("content-type") != "application/octet-stream":
                return Response.refusal(400, "BLOB_UPLOAD_INVALID", "the content type has to be application/octet-stream"), None
            return self._patch(step, session) if step.method == "PATCH" else self._put(step, session)

    def keep(self, step: Step) -> None:
        """Keep the bytes of an interrupted PATCH, which gets no response."""
        with self._guard:
            if step.method == "PATCH" and (session := self._sessions.get(step.session)):
                session.content += step.body

    def _patch(self, step: Step, session: _Session) -> tuple[Response, None]:
        if self._max is not None and len(step.body) > self._max:
            return Response.refusal(416, "SIZE_INVALID", f"more than {self._max} bytes"), None
        if refusal := self._refuse_range(step, session):
            return refusal, None
        session.content += step.body
        return self._describe(202, step.session, session), None

    def _put(self, step: Step, session: _Session) -> tuple[Response, bytes | None]:
        if step.body and session.content and (refusal := self._refuse_range(step, session)):
            return refusal, None
        content = bytes(session.content) + step.body
        digest, *more = parse_qs(step.query).get("digest", [""])
        algorithm, _, encoded = digest.partition(":")
        if more or algorithm not in {"sha256", "sha512"} or hashlib.new(algorithm, content).hexdigest() != encoded:
            return Response.refusal(400, "DIGEST_INVALID", "provided digest did not match uploaded content"), None
        del self._sessions[step.session]
        return created(step.repository, "blobs", digest), content

    def _refuse_range(self, step: Step, session: _Session) -> Response | None:
        has = len(session.content)
        span = _CONTENT_RANGE.fullmatch(step.headers.get("content-range", ""))
        if span is None:
            return Response.refusal(400, "BLOB_UPLOAD_INVALID", "a chunk needs Content-Range: <start>-<end>")
        first, last = int(span["first"]), int(span["last"])
        if last - first + 1 != len(step.body):
            return Response.refusal(400, "SIZE_INVALID", f"{first}-{last} are not {len(step.body)} bytes")
        if first == has:
            return None
        refusal = Response.refusal(416, "RANGE_INVALID", f"expected bytes from {has} on")
        return refusal.with_headers((*_range(has), ("Location", _location(step.repository, step.session, session.state))))

    def _describe(self, status: int, name: str, session: _Session) -> Response:
        session.state = secrets.token_urlsafe(4) + "=="  # clients must send this value unchanged and must not parse it
        where = _location(session.repository, name, session.state)
        return Response.of(status, headers=(("Location", where), *_range(len(session.content))))


def created(repository: str, kind: str, digest: str) -> Response:
    """Return the response for stored content."""
    where = ("Location", f"/v2/{repository}/{kind}/{digest}")
    return Response.of(201, headers=(where, ("Docker-Content-Digest", digest)))


def _location(repository: str, name: str, state: str) -> str:
    return f"/v2/{repository}/blobs/uploads/{name}?_state={state}"


def _range(has: int) -> Headers:
    return (("Range", f"0-{max(has - 1, 0)}"),)
