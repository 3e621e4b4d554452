import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import Result, command, dist, dist_direct
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import Answer, Fault, Flip, Lengthen, Replace, Shorten
from tests.fakes.registry import FakeRegistry
from tests.peers.processes import free_port
from tests.peers.tls import self_signed

HTML = b"<html><body>Sign in to continue</body></html>"
GOOD = images.image(300, layers=2)
LAYER = list(GOOD.blobs)[-1]
_NO_BLOCK = "is a Prefect block, which commands cannot read; pass a file or URL"
_RUN = "prefect deployment run"


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        images.load(registry, "app", GOOD, "v1")
        yield registry


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[[str], Result]:
    def run(reference: str) -> Result:
        return dist_direct("--store", tmp_path / "store", "--output", "json", "fetch", "--retries", "0", reference)

    return run


def is_one_line(result: Result, *, code: int, says: str) -> None:
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert re.fullmatch(f"dist: .*{says}.*", result.line), result.line


def holds(store: Path) -> set[str]:
    return {str(info.digest) for info in open_store(str(store)).walk()}


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("http://docker.io/library/redis", "leave out the scheme http://"),
        ("docker.io/library/Redis:7", "bad path 'library/Redis'"),
        ("Redis:7", "(from 'Redis:7')"),
        ("", "reference: expected an image, such as redis:7, got an empty string"),
        ("docker.io/library/../redis", "bad path"),
        ("user:secret@docker.io/library/redis", "remove the user and password"),
        ("localhost:99999/redis", "bad port, expected 1 to 65535"),
        ("docker.io/library/redis:seven teen", "printable ASCII"),
        ("docker.io/library/redis@sha256:abc", "expected 64 characters"),
    ],
)
def test_an_invalid_reference_is_bad_input(reference: str, says: str, tmp_path: Path) -> None:
    result = dist("--store", tmp_path, "fetch", reference)

    is_one_line(result, code=2, says=re.escape(says))
    assert "secret" not in result.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fetch",), "REF"),
        (("fetch", "redis", "--platform", "amd64"), "expected os/architecture"),
        (("fetch", "redis", "--concurrency", "0"), "concurrency"),
        (("fetch", "redis", "--concurrency", "1.5"), "--concurrency: expected an integer, got '1.5'"),
        (("mirror", "m.yaml", "--workers", "1.5"), "--workers: expected an integer, got '1.5'"),
        (("mirror", "m.yaml", "--workers", "101"), "--workers. Must be <= 100"),
        (("mirror", "m.yaml", "--retries", "0.5"), "--retries: expected an integer, got '0.5'"),
        (("mirror", "block:a"), f"block:a {_NO_BLOCK}, or run the deployment: {_RUN} mirror/mirror --param config=block:a"),
        (("check", "block:a"), f"block:a {_NO_BLOCK}, or run the deployment: {_RUN} check/check --param config=block:a"),
        (("seed", "block:a"), f"block:a {_NO_BLOCK}, or run the deployment: {_RUN} seed/seed --param config=block:a"),
        (("config", "block:a"), f"block:a {_NO_BLOCK}"),
        (
            ("mirror", "http://a.invalid/m.yaml"),
            "http://a.invalid/m.yaml: expected a path, or the URL of a file on an object store",
        ),
        (("get", "sha256:12"), "expected 64 characters"),
        (("ls", "redis"), "prefix 'redis': expected the beginning of a digest"),
        (("ls", ""), "prefix ''"),
        (("ingest", ""), "key ''"),
        (("ingest", "k", "--expected-digest", "md5:00"), "md5 is not supported"),
        (("ingest", "k", "--expected-size", "-1"), "expected-size"),
        (("ingest", "k", "--expected-size", "1.5"), "--expected-size: expected an integer, got '1.5'"),
        (("delete", "sha256:12"), "expected 64 characters"),
        (("rm",), "NAME"),
        (("export", "redis"), "expected NAME... FILE, got only 'redis'"),
        (("export", "redis", "--all", "a.tar"), "unknown option --all"),
        (("import", "--nmae", "a.tar"), "--nmae"),
        (("import", "a.tar", "--name", "Redis"), "(from 'Redis')"),
        (("edit", f"sha256:{'0' * 64}", "--editor", ""), "editor: not set"),
        (("edit", f"sha256:{'0' * 64}", "--editor", "'vi"), "No closing quotation"),
        (("edit", f"sha256:{'0' * 64}", "--editor", "no-such-editor -x"), "command 'no-such-editor' not found"),
        (("tags",), "REPO"),
        (("tags", "redis:7"), "repository 'redis:7': expected no tag or digest, as in docker.io/library/redis"),
        (("tags", "a.invalid/x@sha256:12"), "expected 64 characters"),
        (("tags", f"a.invalid/x@sha256:{'0' * 64}"), "expected no tag or digest, as in a.invalid/x"),
        (("tags", "redis", "--filter", "("), "pattern '(': not a regular expression"),
        (("catalog",), "HOST"),
        (("catalog", "a.invalid/x"), "registry 'a.invalid/x': expected only a host, as in a.invalid"),
        (("catalog", "https://a.invalid"), "leave out the scheme https://"),
        (("catalog", "me:secret@a.invalid"), "remove the user and password"),
        (("catalog", "a.invalid", "--filter", "("), "pattern '(': not a regular expression"),
        (("frobnicate",), "frobnicate"),
        (("--timeout", "soon", "ls"), "timeout"),
        (("--timeout", "soon", "ls"), "expected a duration such as 90s, 30m or 1h30m, or a number of seconds, got 'soon'"),
        (("--timeout", "0s", "ls"), "timeout"),
        (("--timeout", "inf", "ls"), "expected at most 24d, got 'inf'"),
        (("--connect-timeout", "1e300", "ls"), "expected at most 24d, got '1e300'"),
        (("resolve", "a.invalid/x", "--read-timeout", "999999999d"), "expected at most 24d, got '999999999d'"),
        (("--connect-timeout", "-1", "ls"), "connect-timeout"),
        (("resolve", "redis", "--read-timeout", "1 m"), "expected a duration such as 90s"),
        (("--store", "nosuch://x", "ls"), "nosuch"),
        (("--store", "nosuch://x", "gc"), "nosuch"),
        (("--store", "nosuch://x", "verify"), "nosuch"),
        (
            ("--store", "/x", "--store-option", "endpoint_url=http://x", "ls"),
            "a local disk has no store options, got endpoint_url",
        ),
        (("--store", "/x", "--store-option", "endpoint_url=http://x", "gc"), "a local disk has no store options"),
        (("--store", "/x", "--store-option", "endpoint_url=http://x", "fetch", "redis"), "a local disk has no store options"),
        (
            ("--store", "s3://x", "--store-option", "client_kwargs=eu", "ls"),
            "store option client_kwargs: expected nested options as",
        ),
        (("--store", "s3://x", "--store-option", "endpoint_url=5", "ls"), "store s3://x: "),
        (("--store", "s3://x", "--store-option", "endpoint_url=5", "verify"), "store s3://x: "),
        (("--store", "s3://x", "--store-option", "config_kwargs.nope=5", "names"), "unexpected keyword argument 'nope'"),
        (("fetch-object", "redis", "7", "8"), "'8': expected a hint"),
        (("fetch-object", "redis", "mediatype:a/b", "size:abc"), "size:abc: expected a number"),
    ],
)
def test_invalid_arguments_are_bad_input(arguments: tuple[str, ...], says: str) -> None:
    is_one_line(dist(*arguments, VISUAL=None, EDITOR=None), code=2, says=re.escape(says))


def test_a_full_standard_output_is_one_error_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command("--store", tmp_path, "ls"), stdout=full, stderr=subprocess.PIPE, check=False)

    assert (done.returncode, done.stderr) == (1, b"dist: standard output: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_without_standard_streams(closed: str, fake: FakeRegistry, tmp_path: Path) -> None:
    arguments = command("--store", tmp_path / "store", "fetch", "--direct", f"{fake.host}/app:v1")
    script = f'"$@" {closed}; echo $? >"$0"'
    done = subprocess.run(["sh", "-c", script, tmp_path / "code", *arguments], capture_output=True, check=False)

    assert ((tmp_path / "code").read_text(), done.stderr.count(b"Traceback")) == ("0\n", 0)
    assert bool(done.stdout) == (closed in ("<&-", "2>&-"))


def test_a_missing_tag_fails_with_one_line(fake: FakeRegistry, fetch: Callable[[str], Result]) -> None:
    result = fetch(f"{fake.host}/app:nope")

    is_one_line(result, code=1, says=f"{fake.host}/app:nope: not found")
    assert [image["outcome"] for image in result.json["images"]] == ["failed"]


def test_an_unknown_host_fails_with_one_line(fetch: Callable[[str], Result]) -> None:
    is_one_line(fetch("registry.invalid/app:v1"), code=1, says="registry.invalid")


def test_a_refused_connection_fails_with_one_line(fetch: Callable[[str], Result]) -> None:
    host = f"127.0.0.1:{free_port()}"

    is_one_line(fetch(f"{host}/app:v1"), code=1, says=f"{host}/app:v1: Connection refused")


def test_wrong_credentials_fail_with_their_origin_and_no_secret(
    fetch: Callable[[str], Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeRegistry(auth=Basic("ann", "right-secret")) as registry:
        (tmp_path / "config.json").write_text(
            f'{{"auths": {{"{registry.host}": {{"username": "ann", "password": "wrong-secret"}}}}}}'
        )
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

        result = fetch(f"{registry.host}/app:v1")

    is_one_line(
        result,
        code=1,
        says=f"{registry.host}: the password of user 'ann' .from {tmp_path}/config.json: auths.* was rejected; log in again .*",
    )
    assert "wrong-secret" not in result.err + result.out.decode()


def test_an_untrusted_certificate_of_a_token_server_fails_with_one_line(fetch: Callable[[str], Result], tmp_path: Path) -> None:
    with (
        FakeRegistry(tls=self_signed(tmp_path)) as tokens,
        FakeRegistry(auth=Bearer(realm=f"https://{tokens.host}/token")) as registry,
    ):
        result = fetch(f"{registry.host}/app:v1")

    is_one_line(result, code=1, says="certificate of 127.0.0.1 is not trusted")


@pytest.mark.parametrize(
    ("document", "says"),
    [(b"not json", "not JSON"), (HTML, "not JSON"), (b"[]", "expected a JSON object"), (b'{"a": 1}', "expected a manifest")],
)
def test_a_document_that_is_not_a_manifest_fails_with_one_line(
    document: bytes, says: str, fake: FakeRegistry, fetch: Callable[[str], Result], tmp_path: Path
) -> None:
    fake.put_manifest("app", document, images.OCI_MANIFEST, tag="bad")

    is_one_line(fetch(f"{fake.host}/app:bad"), code=1, says=says)
    assert not list(open_store(str(tmp_path / "store")).names)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b'{"manifests": ' + b"[" * 1000 + b"]" * 1000 + b"}", r"manifests\[0\]: expected an object, got a list"),
        (b'{"manifests": ' + b"[" * 4_000_000, r"not JSON \(.*depth.* exceeded"),
        (b'{"manifests": [' + b"{}," * 1_390_000 + b"{}]}", "manifests: expected at most 10000 entries, got 1390001"),
        (b'{"manifests": [], "mediaType": "' + b"x" * 4_000_000 + b'"}', "expected the type of a manifest, got 'xxx"),
    ],
    ids=["deep", "deeper", "wide", "long"],
)
def test_an_oversized_document_fails_with_a_short_line(
    document: bytes, says: str, fake: FakeRegistry, fetch: Callable[[str], Result]
) -> None:
    fake.put_manifest("app", document, images.OCI_INDEX, tag="bomb")

    result = fetch(f"{fake.host}/app:bomb")

    is_one_line(result, code=1, says=says)
    assert len(result.line) < 1000
    assert len(result.out) < 10_000


def test_an_html_page_instead_of_a_manifest_fails_with_one_line(fake: FakeRegistry, fetch: Callable[[str], Result]) -> None:
    fake.inject(Fault(method="HEAD", nth=None, action=Replace(HTML, "text/html; charset=utf-8")))
    fake.inject(Fault(method="GET", nth=None, action=Replace(HTML, "text/html; charset=utf-8")))

    is_one_line(fetch(f"{fake.host}/app:v1"), code=1, says=f"{fake.host}/app:v1")


def test_a_manifest_over_4_mib_is_not_requested(fake: FakeRegistry, fetch: Callable[[str], Result]) -> None:
    fake.put_manifest("app", b" " * (4 * 1024 * 1024 + 1), images.OCI_MANIFEST, tag="huge")

    is_one_line(fetch(f"{fake.host}/app:huge"), code=1, says="at most 4194304 bytes, .*4194305")
    assert not fake.find_requests("GET", ".*")


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (Flip(5), f"expected {LAYER}, got sha256:"),
        (Lengthen(10), "expected [0-9]+ bytes, .*[0-9]+"),
        (Shorten(10), "expected [0-9]+ bytes, .*[0-9]+"),
        (Answer(404), "not found"),
        (Replace(HTML, "text/html"), "expected [0-9]+ bytes, .*[0-9]+"),
    ],
    ids=["flipped", "long", "short", "missing", "html"],
)
def test_a_wrong_blob_is_not_stored(
    action: Flip, says: str, fake: FakeRegistry, fetch: Callable[[str], Result], tmp_path: Path
) -> None:
    fake.inject(Fault(path=f"/v2/app/blobs/{LAYER}", nth=None, action=action))

    result = fetch(f"{fake.host}/app:v1")

    is_one_line(result, code=1, says=says)
    assert LAYER in result.line
    assert holds(tmp_path / "store") == set(GOOD.descriptors) - {LAYER}
    assert [error["descriptor"] for error in result.json["errors"]] == [LAYER]


def test_a_read_only_store_is_refused_before_prefect_starts(fake: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    home = tmp_path / "prefect"

    result = dist(
        "--store", tmp_path / "file" / "store", "fetch", f"{fake.host}/app:v1", PREFECT_HOME=str(home), PREFECT_API_URL=None
    )

    is_one_line(result, code=2, says=str(tmp_path / "file"))
    assert not fake.requests
    assert not home.exists()


def test_a_full_store_keeps_its_blobs_and_the_next_run_resumes(fake: FakeRegistry, tmp_path: Path) -> None:
    big = images.image(310, layers=1, layer_bytes=6_000_000)
    layer = list(big.blobs)[-1]
    images.load(fake, "big", big, "v1")
    arguments = ("--store", tmp_path, "--output", "json", "fetch", "--direct", "--retries", "0", f"{fake.host}/big:v1")

    full = dist(*arguments, file_limit_bytes=4_000_000)

    is_one_line(full, code=1, says=f"layer-{layer}.*File too large; free some space and run again")
    assert holds(tmp_path) == set(big.descriptors) - {layer}
    again = dist(*arguments)
    assert again.code == 0, again.err
    _, rest = fake.find_requests("GET", f"/v2/big/blobs/{layer}")
    assert int(rest.headers["range"].removeprefix("bytes=").partition("-")[0]) > 2_000_000


def test_an_unreachable_prefect_api_fails_with_one_line(fake: FakeRegistry, tmp_path: Path) -> None:
    api = f"http://127.0.0.1:{free_port()}/api"

    result = dist("--store", tmp_path, "--output", "json", "fetch", f"{fake.host}/app:v1", PREFECT_API_URL=api)

    is_one_line(result, code=1, says=f"Prefect API {api} does not answer")
    assert not fake.requests


class _Broken(BaseHTTPRequestHandler):
    """A server that answers each request with an error, such as a proxy without its upstream."""

    def do_GET(self) -> None:
        self.send_error(503)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_server_error_of_the_prefect_api_fails_with_one_line(fake: FakeRegistry, tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = f"http://127.0.0.1:{server.server_port}/api"
        result = dist("--store", tmp_path, "--output", "json", "fetch", f"{fake.host}/app:v1", PREFECT_API_URL=api)
        server.shutdown()

    says = f"Prefect API {api} does not answer: HTTP 503 Service Unavailable; start it with"
    is_one_line(result, code=1, says=says)
    assert not fake.requests


def test_a_silent_prefect_api_times_out(fake: FakeRegistry, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts connections, and no process answers
        api = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        fetch = ("--store", tmp_path, "--connect-timeout", "0.5s", "fetch", f"{fake.host}/app:v1")

        result = dist(*fetch, PREFECT_API_URL=api)

    assert result.code == 1
    message = f"dist: Prefect API {api} does not answer: no answer within 0.5 s; start it with"
    assert result.err.splitlines()[-1].startswith(message)
    assert not fake.requests


def test_a_server_that_is_not_prefect_fails_with_one_line(fake: FakeRegistry, tmp_path: Path) -> None:
    api = f"http://{fake.host}/api"

    result = dist("--store", tmp_path, "--output", "json", "fetch", f"{fake.host}/app:v1", PREFECT_API_URL=api)

    is_one_line(result, code=1, says=f"Prefect API {api}")
