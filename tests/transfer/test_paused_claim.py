"""A process that holds a claim on S3 and is paused for longer than the time after which the claim is taken over."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.storage import open_store
from prefect_dist.storage.claims import FETCH, ContentClaims
from tests import images
from tests.fakes.faults import Call, Fault, Stall
from tests.fakes.registry import FakeRegistry
from tests.peers.processes import PATIENCE_S, poll_until
from tests.peers.seaweedfs import S3Server

BUILT = images.image(8100, layers=1, layer_bytes=4_000_000)
LAYER, CONTENT = list(BUILT.blobs.items())[-1]
RENEW_S, SILENCE_S = 0.3, 2.0


@contextmanager
def claimant(s3: S3Server, store: str, source: FakeRegistry) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that fetches the layer."""
    given = {"store": store, "options": s3.storage_options, "renew_s": RENEW_S, "silence_s": SILENCE_S}
    given |= {"reference": f"{source.host}/app:v1", "digest": LAYER, "size": len(CONTENT)}
    argv = [sys.executable, "-m", "tests.transfer.claimant", json.dumps(given)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_paused_process_that_wakes_up_overwrites_no_claim_and_tears_no_content(s3: S3Server) -> None:
    store, options, release, begun = f"{s3.url}/{uuid.uuid4().hex}", s3.storage_options, threading.Event(), list[int]()
    with FakeRegistry() as source, open_store(store, options=options) as opened:
        images.load(source, "app", BUILT, "v1")
        path = f"/v2/app/blobs/{LAYER}"
        source.inject(Fault(path=path, action=Stall(1_000_000, release)))
        source.inject(Fault(path=path, action=Call(lambda: begun.append(1))))
        with claimant(s3, store, source) as paused:
            assert poll_until(lambda: bool(begun), timeout_s=30)
            os.kill(paused.pid, signal.SIGSTOP)

            with claimant(s3, store, source) as other:  # takes the claim over after the silence
                assert other.communicate(timeout=PATIENCE_S)[0] == "fetched\n"

            claims = ContentClaims(opened._backend, opened._layout, renew_s=RENEW_S, silence_s=SILENCE_S)
            with claims.hold(FETCH, Digest.parse(LAYER), pause=lambda _seconds: pytest.fail("the claim has ended")) as third:
                os.kill(paused.pid, signal.SIGCONT)
                release.set()
                assert paused.communicate(timeout=PATIENCE_S)[0] == "fetched\n"
                raw, _ = opened._backend.read_versioned(third.path)
            claims.close()
        assert third.token.encode() in (raw or b"")
        assert [one.path for one in source.requests if one.method == "GET" and one.path == path] == [path, path]
        assert b"".join(opened.chunks(Digest.parse(LAYER))) == CONTENT
        assert opened._backend.read_versioned(third.path) == (None, None)
