"""Credentials and TLS settings from options, environment, files and blocks. No output contains a secret."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.cli.dist import command, dist
from tests.cli.terminal import at_terminal
from tests.fakes.access import Basic, Bearer
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S
from tests.peers.tls import self_signed

IMAGE = images.image(310, layers=2)
SECRET = "correct-horse-battery"


@pytest.fixture(params=[Basic("me", SECRET), Bearer(user="me", password=SECRET, refuse_anonymous=True)], ids=["basic", "token"])
def private(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    with FakeRegistry(auth=request.param) as registry:
        images.load(registry, "app", IMAGE, "v1")
        yield registry


def test_a_password_from_standard_input(private: FakeRegistry) -> None:
    result = dist("resolve", f"{private.host}/app:v1", "--username", "me", "--password-stdin", stdin=f"{SECRET}\n".encode())
    assert result.code == 0, result.err
    assert IMAGE.root.digest in result.out.decode()
    assert SECRET not in result.out.decode() + result.err


def test_a_password_from_the_environment(private: FakeRegistry) -> None:
    result = dist("resolve", f"{private.host}/app:v1", DIST_USERNAME="me", DIST_PASSWORD=SECRET)
    assert result.code == 0, result.err


def test_a_wrong_password_is_reported_with_its_origin(private: FakeRegistry) -> None:
    message = f"dist: {private.host}: the password of user 'me' (from {{}}) was rejected; give the right ones ("
    name = f"{private.host}/app:v1"
    result = dist("resolve", name, DIST_USERNAME="me", DIST_PASSWORD="another")
    assert result.line.startswith(message.format("$DIST_USERNAME and $DIST_PASSWORD"))
    result = dist("resolve", name, "--username", "me", "--password-stdin", stdin=b"another", DIST_PASSWORD=SECRET)
    assert result.line.startswith(message.format("--username and --password-stdin"))


def test_missing_credentials_are_reported_with_the_options_of_the_command(private: FakeRegistry) -> None:
    message = dist("resolve", f"{private.host}/app:v1").line
    assert f"; give --username and --password-stdin, or log in with 'docker login {private.host}' or " in message
    assert "--credentials" not in message


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (b"", "expected a password, got nothing"),
        (b"\r\n", "expected a password, got nothing"),
        (f"{SECRET}\n{SECRET}\n".encode(), "expected a password in one line, got 2 lines"),
        (f"{SECRET}\n\n".encode(), "expected a password in one line, got 2 lines"),
        (SECRET.encode() + b"\xff\xfe", "expected a password in UTF-8, got other bytes"),
        (SECRET.encode("utf-16-le"), "expected a password without control characters, got some"),
        pytest.param(SECRET.encode() * 4000, "expected a password, got more than 65536 bytes", id="too long"),
    ],
)
@pytest.mark.parametrize("command", [("resolve", "a.invalid/x"), ("fetch", "a.invalid/x")])
def test_an_invalid_password_on_standard_input_is_refused(
    command: tuple[str, ...], stdin: bytes, says: str, tmp_path: Path
) -> None:
    result = dist("--store", tmp_path, *command, "--username", "me", "--password-stdin", stdin=stdin)
    assert (result.code, result.line) == (2, f"dist: --password-stdin: {says}")
    assert SECRET not in result.err


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("", "user me: no password; write it to standard input with --password-stdin, or set DIST_PASSWORD"),
        (f"{SECRET}\udcff", "DIST_PASSWORD: expected a password in UTF-8, got other bytes"),
        (f"{SECRET}\r", "DIST_PASSWORD: expected a password without control characters, got some"),
    ],
)
def test_an_invalid_password_in_the_environment_is_refused(password: str, says: str) -> None:
    result = dist("resolve", "a.invalid/x", DIST_USERNAME="me", DIST_PASSWORD=password)
    assert (result.code, result.line) == (2, f"dist: {says}")


def test_a_closed_standard_input_has_no_password() -> None:
    closed = ("sh", "-c", 'exec "$@" <&-', "sh", *command("resolve", "a.invalid/x", "--username", "me", "--password-stdin"))
    result = subprocess.run(closed, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    said = "dist: --password-stdin: expected a password, got nothing\n"
    assert (result.returncode, result.stderr) == (2, said)


def test_a_terminal_does_not_echo_the_password(private: FakeRegistry) -> None:
    result = at_terminal(f"{SECRET}\n", "resolve", f"{private.host}/app:v1", "--username", "me", "--password-stdin")
    assert result.code == 0, result.shown
    assert result.shown.startswith("password of me: ")
    assert IMAGE.root.digest in result.shown
    assert SECRET not in result.shown


@pytest.mark.parametrize(
    ("typed", "code", "says"), [("\x04", 2, "expected a password, got nothing"), ("\x03", 130, "interrupted")]
)
def test_an_empty_password_at_a_terminal_is_refused(typed: str, code: int, says: str) -> None:
    result = at_terminal(typed, "resolve", "a.invalid/x", "--username", "me", "--password-stdin")
    assert (result.code, says in result.shown, "Traceback" in result.shown) == (code, True, False), result.shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--password-stdin",), "--password-stdin requires --username or $DIST_USERNAME"),
        (("--username", "me"), "user me: no password"),
        (("--ca-file", "/none.pem"), "/none.pem: No such file or directory; expected a readable PEM file"),
        (("--hosts", "/none.yaml"), "/none.yaml: No such file"),
        (("--insecure", "https://a"), "insecure 'https://a': expected host[:port]"),
    ],
)
def test_login_options_that_contradict_each_other_are_bad_input(arguments: tuple[str, ...], says: str) -> None:
    result = dist("resolve", "redis", *arguments)
    assert (result.code, result.line.partition(says)[1]) == (2, says), result.err


def test_a_password_is_sent_to_one_registry_only(tmp_path: Path) -> None:
    result = dist("--store", tmp_path, "fetch", "a.invalid/x", "b.invalid/x", DIST_USERNAME="me", DIST_PASSWORD=SECRET)
    assert result.code == 2
    assert "expected one registry to log in to, got a.invalid, b.invalid" in result.line
    assert SECRET not in result.err


@pytest.mark.parametrize("command", [("resolve",), ("fetch", "--retries", "0")], ids=["by hand", "as a run"])
def test_a_missing_credentials_file_is_reported_once(command: tuple[str, ...], prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    with FakeRegistry() as public:
        images.load(public, "app", IMAGE, "v1")
        store = tmp_path / "store"
        name = f"{public.host}/app:v1"
        result = dist("--store", store, "--output", "json", *command, name, REGISTRY_AUTH_FILE="/none/auth.json")
    assert result.code == 0, result.err
    assert "REGISTRY_AUTH_FILE: the file /none/auth.json does not exist" in result.line


def test_ca_bundle_by_option_and_by_hosts_file(tmp_path: Path) -> None:
    with FakeRegistry(tls=self_signed(tmp_path)) as registry:
        images.load(registry, "app", IMAGE, "v1")
        name = f"{registry.host}/app:v1"
        hosts = tmp_path / "hosts.yaml"
        hosts.write_text(f"registries:\n  {registry.host}:\n    tls: enabled\n")
        unknown = dist("resolve", name, "--hosts", str(hosts))
        assert (unknown.code, f"--ca-file, or skip verification with --insecure {registry.host}" in unknown.line) == (1, True)
        assert dist("resolve", name, "--hosts", str(hosts), "--ca-file", str(tmp_path / "cert.pem")).code == 0
        assert dist("resolve", name, "--insecure", registry.host).code == 0


def test_a_run_uses_a_typed_password_and_does_not_record_it(
    private: FakeRegistry, prefect: PrefectServer, tmp_path: Path
) -> None:
    name = f"{private.host}/app:v1"
    arguments = ("--store", tmp_path / "store", "--output", "json", "fetch", "--retries", "0", name)
    result = dist(*arguments, DIST_USERNAME="me", DIST_PASSWORD=SECRET)
    assert result.code == 0, result.err
    _grep(prefect, result.json["flow_run_id"], result.out.decode(), result.err)


def test_a_refused_login_is_reported_once_without_the_secret(
    private: FakeRegistry, prefect: PrefectServer, tmp_path: Path
) -> None:
    name = f"{private.host}/app:v1"
    wrong = f"{SECRET}-wrong"
    arguments = ("--store", tmp_path / "store", "--output", "json", "fetch", name)
    result = dist(*arguments, DIST_USERNAME="me", DIST_PASSWORD=wrong)
    assert result.code == 1
    assert private.host in result.line
    asked_with_it = [one for one in private.requests if "authorization" in one.headers and one.path != "/token"]
    assert len(asked_with_it) <= 1
    _grep(prefect, result.json["flow_run_id"], result.out.decode(), result.err)


def test_credentials_from_a_block(private: FakeRegistry, prefect: PrefectServer, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from pydantic import SecretStr

    from prefect_dist.flows.blocks import RegistryCredentials

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        block = RegistryCredentials(registry=private.host, username="me", password=SecretStr(SECRET))
        block.save("cli-test", overwrite=True)
    name = f"{private.host}/app:v1"
    result = dist("--store", tmp_path / "store", "--output", "json", "fetch", "--credentials", "cli-test", name)
    assert result.code == 0, result.err
    _grep(prefect, result.json["flow_run_id"], result.out.decode(), result.err)


def _grep(prefect: PrefectServer, flow_run_id: str, *texts: str) -> None:
    """Check that neither `texts` nor the records of Prefect contain the secret."""
    run = prefect.get(f"/flow_runs/{flow_run_id}")
    tasks = prefect.task_runs(flow_run_id)
    of_run = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    artifacts = prefect.post("/artifacts/filter", of_run)
    logs = prefect.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run_id]}}})
    for recorded in (*texts, run, tasks, artifacts, logs):
        assert SECRET not in str(recorded)
