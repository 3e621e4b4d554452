"""A failed run shows no secret on the terminal and in the records of Prefect.

Each source of credentials is tested with each command that sends requests to a registry. The tests search for secrets in the
output of the command and in all files of the Prefect server. They also find other data of the run there, which shows that they
search in the right files.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import Result, dist
from tests.fakes.faults import Fault, Redirect
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.processes import poll_until
from tests.peers.registry import LOGIN, CncfRegistry, cncf_registry
from tests.peers.token_server import IDENTITY_TOKEN, PASSWORD, USER, TokenServer

IMAGE = images.image(720, layers=1)
LAYER = list(IMAGE.blobs)[-1]
NAME = "kept/app:v1"
WRONG = "wrong-secret-7f3a"
# The registry adds a minute to the life of a token. These tokens have expired when they arrive.
OVER_S = -3600
_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The source of the credentials: environment, a Docker configuration, or a credential helper. `guard` refuses them."""

    guard: str
    environment: dict[str, str] = field(default_factory=dict)
    entry: dict[str, str] | None = None
    helper: dict[str, str] | None = None

    @property
    def secrets(self) -> set[str]:
        parts = (self.environment, self.entry or {}, self.helper or {})
        plain = {part[key] for part in parts for key in ("DIST_PASSWORD", "auth", "identitytoken", "Secret") if key in part}
        users = {USER, LOGIN[0]}
        return plain | {basic(user, secret) for user in users for secret in plain}


WAYS = {
    "basic, wrong": Way(guard="basic", environment={"DIST_USERNAME": LOGIN[0], "DIST_PASSWORD": WRONG}),
    "basic by a file, wrong": Way(guard="basic", entry={"auth": basic(LOGIN[0], WRONG)}),
    "basic by a helper, wrong": Way(guard="basic", helper={"Username": LOGIN[0], "Secret": WRONG}),
    "token, wrong": Way(guard="token", environment={"DIST_USERNAME": USER, "DIST_PASSWORD": WRONG}),
    "token, over": Way(guard="token", environment={"DIST_USERNAME": USER, "DIST_PASSWORD": PASSWORD}),
    "identity, wrong": Way(guard="token", entry={"auth": basic(USER, ""), "identitytoken": WRONG}),
    "identity, over": Way(guard="token", entry={"auth": basic(USER, ""), "identitytoken": IDENTITY_TOKEN}),
    "identity by a helper, over": Way(guard="token", helper={"Username": "<token>", "Secret": IDENTITY_TOKEN}),
}
RUNS = ["basic by a helper, wrong", "token, wrong", "token, over", "identity, over"]


@dataclass(frozen=True, slots=True)
class Peers:
    guards: dict[str, CncfRegistry]
    tokens: TokenServer
    store: Path


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Registries that require a login, and a store with an image for them."""
    directory = tmp_path_factory.mktemp("secrets")
    store = open_store(str(directory / "store"))
    for digest, data in (*IMAGE.blobs.items(), *((one.digest, one.raw) for one in IMAGE.manifests)):
        with store.writer(digest, expected=Digest.parse(digest), total=len(data)) as writer:
            writer.write(data)
            writer.commit()
    root = IMAGE.root
    store.names.put(NAME, Descriptor(media_type=root.media_type, digest=Digest.parse(root.digest), size=root.size), source=NAME)
    with (
        TokenServer(directory) as tokens,
        cncf_registry(directory / "basic", basic_auth=True) as by_password,
        cncf_registry(directory / "token", tokens=tokens) as by_token,
    ):
        tokens.signed_s, tokens.gives_refresh = OVER_S, True
        yield Peers({"basic": by_password, "token": by_token}, tokens, directory / "store")


@pytest.fixture
def recorded(prefect: PrefectServer, home: Path) -> Callable[[str], bytes]:
    """Return all data below the home directory, as soon as a run is recorded."""

    def kept() -> bytes:
        return b"\n".join(path.read_bytes() for path in home.rglob("*") if path.is_file())

    def read(run: str) -> bytes:
        prefect.task_runs(run, at_least=1)
        assert poll_until(lambda: run.encode() in kept())
        return kept()

    return read


def environment(way: Way, host: str, directory: Path) -> dict[str, Any]:
    """Return the environment that gives a command its credentials."""
    document: dict[str, object] = {}
    if way.entry:
        document["auths"] = {host: way.entry}
    if way.helper:
        document["credHelpers"] = {host: "kept"}
        program = directory / "docker-credential-kept"
        program.write_text(f"#!/bin/sh\ncat >/dev/null\ncat <<'END'\n{json.dumps({'ServerURL': host, **way.helper})}\nEND\n")
        program.chmod(0o755)
    (directory / "config.json").write_text(json.dumps(document))
    return {**way.environment, "DOCKER_CONFIG": str(directory), "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"}


def check(way: Way, peers: Peers, result: Result, *, code: int) -> set[str]:
    """Check that a command failed at the registry without a secret in its output. Return the secrets."""
    assert result.code == code, result.err
    host = peers.guards[way.guard].host
    assert host in result.err
    secrets = {*way.secrets, *peers.tokens.issued, *peers.tokens.refresh_tokens} - {""}
    for secret in secrets:
        assert secret not in result.out.decode() + result.err
    return secrets


@pytest.mark.parametrize("command", ["resolve", "fetch-object", "push-object"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_command_shows_no_secret(peers: Peers, tmp_path: Path, way: Way, command: str) -> None:
    host = peers.guards[way.guard].host
    before = len(peers.tokens.requests)
    arguments = (f"{host}/team/app:v1",) if command != "push-object" else (f"{host}/team/app", LAYER)
    result = dist("--store", peers.store, "--debug", command, *arguments, **environment(way, host, tmp_path))
    check(way, peers, result, code=1)
    assert "Traceback" in result.err  # --debug shows the traceback
    assert "DEBUG prefect_dist.remotes.registry: " in result.err  # each request is logged
    assert (len(peers.tokens.requests) > before) is (way.guard == "token")


@pytest.mark.parametrize("verb", ["fetch", "push"])
@pytest.mark.parametrize("way", [WAYS[name] for name in RUNS], ids=RUNS)
def test_a_run_shows_and_records_no_secret(
    peers: Peers, recorded: Callable[[str], bytes], tmp_path: Path, way: Way, verb: str
) -> None:
    host = peers.guards[way.guard].host
    target = f"{host}/runs/app:v1"
    arguments = (target,) if verb == "fetch" else (NAME, target)
    form = ("--debug", "--output", "json") if verb == "fetch" else ("--debug",)
    result = dist("--store", peers.store, *form, verb, *arguments, **environment(way, host, tmp_path))
    secrets = check(way, peers, result, code=1)

    run = _RUN.search(result.out.decode())
    assert run is not None
    everything = recorded(run[0])
    assert target.encode() in everything
    for secret in secrets:
        assert secret.encode() not in everything


@pytest.mark.parametrize("command", ["fetch", "fetch-object"])
def test_a_signed_url_is_not_shown(
    prefect: PrefectServer, recorded: Callable[[str], bytes], tmp_path: Path, command: str
) -> None:
    """A registry redirects to a signed URL, which is a secret, of a storage that lacks the blob."""
    assert prefect.url
    with FakeRegistry() as registry, FakeRegistry() as elsewhere:
        images.load(registry, "app", IMAGE, "v1")
        signed = f"http://{elsewhere.host}{{path}}?X-Amz-Signature={WRONG}"
        registry.inject(Fault(path=f".*/blobs/{LAYER}", nth=None, action=Redirect(signed)))
        wanted = f"{registry.host}/app:v1" if command == "fetch" else f"{registry.host}/app@{LAYER}"
        hint = () if command == "fetch" else (f"mediatype:{images.OCI_LAYER}", f"size:{len(IMAGE.blobs[LAYER])}")

        result = dist("--store", tmp_path, "--debug", command, wanted, *hint)

        assert elsewhere.find_requests("GET", ".*")
    assert result.code == 1
    assert f"{elsewhere.host}/v2/app/blobs/{LAYER}?X-Amz-Signature=…" in result.err
    everything = result.out + result.err.encode()
    if command == "fetch":
        run = _RUN.search(result.out.decode())
        assert run is not None
        everything += recorded(run[0])
        assert elsewhere.host.encode() in everything
    assert WRONG.encode() not in everything
