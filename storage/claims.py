"""Claims: short notes in an object store by which the processes of a fleet transfer each piece of content once.

A process claims content before it transfers the content, by a conditional write that creates `claims/<group>/<digest>`. Other
processes wait until the claim ends. The holder renews its claims every 20 s. After 60 s without a renewal, another process
takes a claim over: the holder is dead, or was paused. A paused holder may continue, and then both transfer the content. This
costs only the transfer, because content becomes visible only whole and verified.

A finished claim may keep a note, such as the repository that has the content now. gc removes finished claims after a day.

On a disk, a lock file takes the place of conditional writes, and the locks of ingests take the place of claims on downloads. An
object store without conditional writes grants every claim.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field

from prefect_dist.ocispec import Digest, fields
from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, Unavailable
from prefect_dist.storage.backend import Backend
from prefect_dist.storage.layout import Layout

FETCH = "fetch"
"""The group of claims on downloads to the store."""

RENEW_S, SILENCE_S = 20.0, 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 2.0
_REFUSALS = (Denied, InvalidInput, Unavailable)
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class ContentClaim:
    """A claim of this process. `note` is the note of the last holder, and is kept for later holders."""

    path: str
    note: str | None = None
    renewals: int = 0
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def to_json(self, *, is_ended: bool) -> bytes:
        """Return the content of the object. No two claims and no two renewals have the same content."""
        return json.dumps({"holder": self.token, "renewals": self.renewals, "ended": is_ended, "note": self.note}).encode()


class ContentClaims:
    """The claims of one process on a store. Thread-safe; the owner closes it.

    `renew_s` is the time between renewals, and `silence_s` the time after which another process takes a claim over.
    """

    def __init__(self, backend: Backend, layout: Layout, *, renew_s: float = RENEW_S, silence_s: float = SILENCE_S) -> None:
        self._backend, self._layout = backend, layout
        self._renew_s, self._silence_s = renew_s, silence_s
        self._held: set[ContentClaim] = set()
        self._guard = threading.Lock()
        self._closed = threading.Event()
        self._renewer: threading.Thread | None = None
        self._has_warned = False

    @contextmanager
    def hold(self, group: str, digest: Digest, *, pause: Callable[[float], None]) -> Iterator[ContentClaim]:
        """Hold the claim on some content during this block. While another process holds the claim, call `pause`.

        `group` is `fetch`, or the registry to which the content is uploaded. Without a note, the claim is removed at the end.

        If the store refuses the claim, the block runs without a claim: only the number of transfers depends on claims.
        """
        path = self._layout.claim(group, digest)
        is_needed = not (self._backend.has_locks and group == FETCH)  # the lock of the ingest does the same
        claim = self._take(path, pause) if is_needed else None
        if claim is None:
            yield ContentClaim(path)
            return
        with self._guard:
            self._held.add(claim)
            self._start_renewing()
        try:
            yield claim
        finally:
            with self._guard:
                self._held.discard(claim)
            with suppress(DistError), self._backend.translate_errors(path):  # a claim that stays is taken over
                while not self._try_to_end(claim):  # a renewal that had begun has changed the object
                    pass

    def find_note(self, group: str, digest: Digest) -> str | None:
        """Return the note of the last holder; None while a process holds the claim, without a note, or without access."""
        path = self._layout.claim(group, digest)
        try:
            with self._backend.translate_errors(self._layout.format_path(path)):
                is_ended, note = _parse(self._backend.read_versioned(path)[0])
        except _REFUSALS as exc:
            self._warn(exc)
            return None
        return note if is_ended else None

    def close(self) -> None:
        """Stop renewing."""
        self._closed.set()

    def _take(self, path: str, pause: Callable[[float], None]) -> ContentClaim | None:
        """Return a claim once the object is missing, ended, or silent for too long; None if the store refuses the claim."""
        last, since, longest = None, time.monotonic(), _FIRST_PAUSE_S
        while True:
            is_silent = last is not None and time.monotonic() - since > self._silence_s
            try:
                with self._backend.translate_errors(self._layout.format_path(path)):
                    claim, raw = self._try_to_take(path, silent=last if is_silent else None)
            except _REFUSALS as exc:
                self._warn(exc)
                return None
            if claim is not None:
                return claim
            if raw != last:
                last, since = raw, time.monotonic()
            pause(min(longest, self._silence_s))
            longest = min(2 * longest, _LONGEST_PAUSE_S)

    def _warn(self, error: DistError) -> None:
        """Log one warning per process: a store that refuses one claim usually refuses more of them."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning("continuing without a claim, so other processes may transfer the same content again: %s", error)

    def _try_to_take(self, path: str, *, silent: bytes | None) -> tuple[ContentClaim | None, bytes | None]:
        """Return the claim if the object is missing, ended, or still has the content `silent`; and the old content."""
        with self._lock(path):
            raw, version = self._backend.read_versioned(path)
            is_ended, note = _parse(raw)
            claim = ContentClaim(path, note)
            if not (is_ended or (raw is not None and raw == silent)):
                return None, raw
            if not is_ended:
                _log.info("%s: taken over after %.0f s without a renewal", path, self._silence_s)
            return (claim if self._backend.replace(path, claim.to_json(is_ended=False), version) else None), raw

    def _try_to_end(self, claim: ContentClaim) -> bool:
        """Remove a claim, or keep its note, unless another process took the claim over. Return False after a conflict."""
        with self._lock(claim.path):
            raw, version = self._backend.read_versioned(claim.path)
            if raw is None or claim.token.encode() not in raw:
                return True
            if claim.note is not None:
                return self._backend.replace(claim.path, claim.to_json(is_ended=True), version)
            # An object store removes without a condition. Another process can hold the claim now only if this process was
            # paused for 60 s after the read. The content is then transferred twice, which is harmless. An ended claim before
            # the removal would make the conflict frequent, because a waiting process takes an ended claim at once.
            self._backend.remove([claim.path])
            return True

    def _lock(self, path: str) -> AbstractContextManager[None]:
        """Return a block that excludes other processes on a disk. An object store has conditional writes instead."""
        return self._backend.hold_lock(f"{path}.lock", shared=False, make=True)

    def _start_renewing(self) -> None:
        if self._renewer is None:
            self._renewer = threading.Thread(target=self._renew, name="claims", daemon=True)
            self._renewer.start()

    def _renew(self) -> None:
        while not self._closed.wait(self._renew_s):
            with self._guard:
                held = tuple(self._held)
            for claim in held:
                with suppress(DistError), self._backend.translate_errors(claim.path):
                    self._renew_one(claim)

    def _renew_one(self, claim: ContentClaim) -> None:
        """Renew a claim, unless the claim ended or another process took it over."""
        with self._lock(claim.path):
            raw, version = self._backend.read_versioned(claim.path)
            with self._guard:
                is_held = claim in self._held
            if is_held and raw is not None and claim.token.encode() in raw:
                claim.renewals += 1
                self._backend.replace(claim.path, claim.to_json(is_ended=False), version)


def _parse(raw: bytes | None) -> tuple[bool, str | None]:
    """Return whether a claim is ended, and its note. A damaged claim counts as held until it is silent for too long."""
    if raw is None:
        return True, None
    try:
        document = fields.parse_object(raw, at="claim")
        return fields.require(document, "ended", bool, at="claim"), fields.optional(document, "note", str, at="claim")
    except InvalidInput:
        return False, None
