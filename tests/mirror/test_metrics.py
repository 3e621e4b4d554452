"""A failed push of metrics is a warning, whatever is wrong with the gateway or its URL. The warning shows no secret."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from prefect_dist.mirror.metrics import push_metrics
from prefect_dist.mirror.report import RunReport
from tests.peers.processes import free_port

LOG = logging.getLogger("test")
COUNTS = {"fetched_bytes": 0, "sent_bytes": 0}
REPORT = RunReport(flow="mirror", status="complete", store="/store", tasks=0, seconds=1, configuration="hub", counts=COUNTS)
SECRET = "secret-4711"
USAGE = "DIST_METRICS: expected a URL such as http://pushgateway:9091; no metrics are pushed"
NO_USER = "DIST_METRICS: expected a URL without user and password; no metrics are pushed"


def warn(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """Push metrics to a URL, and return the only warning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIST_METRICS", url)
        push_metrics(REPORT, log=LOG)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    return record.getMessage()


@pytest.mark.parametrize(
    ("url", "warning"),
    [
        (f"http://127.0.0.1:1/a b?token={SECRET}", USAGE),
        (f"http://127.0.0.1:1?token={SECRET} ", USAGE),
        (f"http://127.0.0.1:{SECRET}", USAGE),
        (f"http://[::1?token={SECRET}", USAGE),
        (f"http://me:{SECRET}@127.0.0.1:1", NO_USER),
        (f"http://me:{SECRET}@[::1", NO_USER),
        (f"me:{SECRET}@127.0.0.1:1", NO_USER),
    ],
)
def test_an_unusable_url_is_a_warning_without_the_url(url: str, warning: str, caplog: pytest.LogCaptureFixture) -> None:
    assert warn(url, caplog) == warning


@pytest.mark.parametrize("start", ["", "http://"])
def test_an_unreachable_gateway_is_a_warning_with_its_host(start: str, caplog: pytest.LogCaptureFixture) -> None:
    host = f"127.0.0.1:{free_port()}"
    warning = warn(f"{start}{host}/?token={SECRET}", caplog)
    assert warning.startswith(f"metrics could not be pushed to {host}, the host in DIST_METRICS: ")
    assert "refused" in warning
    assert SECRET not in warning


@pytest.fixture
def chatter() -> Iterator[str]:
    """The address of a server that answers a request with a line that is no HTTP."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with closing(connection):
                connection.recv(1 << 16)
                connection.sendall(b"220 mail.example ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_a_server_of_another_protocol_is_a_warning_with_its_host(chatter: str, caplog: pytest.LogCaptureFixture) -> None:
    reason = "the server sent no valid HTTP response (BadStatusLine)"
    assert warn(f"http://{chatter}", caplog) == f"metrics could not be pushed to {chatter}, the host in DIST_METRICS: {reason}"
