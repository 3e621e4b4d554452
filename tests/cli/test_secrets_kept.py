"""Credentials never reach the database of Prefect, however they were given, in runs that succeed and fail (secure-prefect.md).

Each source of credentials is tested with a correct and a refused password, on a server with the settings of a shared server.
Then the tests search each value in each table, raw and decoded, and each file next to the database. Blocks are in the database,
encrypted with a key that is elsewhere.
"""

import base64
import json
import os
import re
import shutil
import sqlite3
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from cryptography.fernet import Fernet

from prefect_dist.flows import blocks
from tests import images
from tests.cli.dist import dist
from tests.fakes.access import Basic
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer, prefect_server
from tests.peers.processes import poll_until
from tests.peers.seaweedfs import S3Server

USER = "tester"
IMAGE = images.image(3800, layers=1)
_TOKEN = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")

pytestmark = pytest.mark.xdist_group("secrets_kept")  # the tests share one server, whose start takes 6 s of CPU time


def texts(home: Path) -> Iterator[str]:
    """Yield each value in the database of a server, and each file below its home directory."""
    copy = home.parent / "copy.db"
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        database.execute("VACUUM INTO ?", (str(copy),))  # includes the write-ahead log
    with closing(sqlite3.connect(copy)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - a name from the database
                yield from (value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in row)
    yield from (path.read_bytes().decode("latin-1") for path in (copy, *home.rglob("*")) if path.is_file())


def found(secret: str, kept: str) -> bool:
    """Return True if the data contain the secret in one of its encodings."""
    forms = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], secret.encode().hex()}
    return any(form in kept for form in forms) or any(secret in one for one in _decoded(kept))


def _decoded(kept: str) -> Iterator[str]:
    for token in set(_TOKEN.findall(kept)):
        for shift in range(4):  # other text, such as a path, may precede a token
            yield base64.urlsafe_b64decode(_padded(token[shift:].replace("+", "-").replace("/", "_"))).decode("latin-1")


def _padded(token: str) -> str:
    plain = token.rstrip("=")
    plain = plain[: len(plain) - (len(plain) % 4 == 1)]
    return plain + "=" * (-len(plain) % 4)


@pytest.mark.parametrize(
    "form",
    ["{}", "Basic {}", "http://u:{}@h/", "x/{}"],
)
@pytest.mark.parametrize("encoded", [str, lambda s: base64.b64encode(f"{USER}:{s}".encode()).decode(), quote])
def test_the_search_finds_a_secret(form: str, encoded: Callable[[str], str], tmp_path: Path) -> None:
    secret = "sec/ret-4711"
    (tmp_path / "home").mkdir()
    with closing(sqlite3.connect(tmp_path / "home/prefect.db")) as database:
        database.execute("CREATE TABLE t (a)")
        database.execute("INSERT INTO t VALUES (?)", (json.dumps({"data": form.format(encoded(secret)) + "!" * 9000}),))
        database.commit()
    assert any(found(secret, text) for text in texts(tmp_path / "home"))
    assert unquote(quote(secret)) == secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A Prefect server that requires a login, and the environment for commands."""

    prefect: PrefectServer
    home: Path
    environment: dict[str, Any] = field(repr=False)
    auth: str = field(repr=False)


@pytest.fixture(scope="module")
def shared(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    auth, key = "admin:api-secret-51c8", Fernet.generate_key().decode()
    directory = tmp_path_factory.mktemp("shared")
    home = directory / "server"
    home.mkdir()
    shutil.copy(migrated, home / "prefect.db")
    with prefect_server(home, auth=auth, PREFECT_SERVER_ENCRYPTION_KEY=key) as server:
        environment = {"PREFECT_API_URL": server.url, "PREFECT_API_AUTH_STRING": auth}
        yield Shared(prefect=server, home=home, environment=environment, auth=auth)
        kept = list(texts(home))
        for secret in (auth.partition(":")[2], key):
            assert not any(found(secret, text) for text in kept)
        assert not any("fernet_key" in text for text in kept)


@pytest.fixture
def registries() -> Iterator[Callable[[str], tuple[FakeRegistry, FakeRegistry]]]:
    """Create a registry that accepts a password, and a registry that refuses it."""
    opened: list[FakeRegistry] = []

    def make(password: str) -> tuple[FakeRegistry, FakeRegistry]:
        for wanted in (password, f"not-{password[::-1]}"):
            registry = FakeRegistry(auth=Basic(USER, wanted))
            opened.append(registry.__enter__())
            images.load(registry, "app", IMAGE, "v1")
        return opened[0], opened[1]

    yield make
    for registry in opened:
        registry.__exit__(None, None, None)


def block(shared: Shared, slug: str, name: str, data: dict[str, Any], secrets: list[str]) -> None:
    """Save a block over the API, like the UI."""
    types = {"registry-credentials": "RegistryCredentials", "content-store": "ContentStore"}
    if slug in types:
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
        from pydantic import SecretStr

        settings = {PREFECT_API_URL: shared.prefect.url, PREFECT_API_AUTH_STRING: SecretStr(shared.auth)}
        with temporary_settings(settings):
            getattr(blocks, types[slug]).model_validate(data).save(name, overwrite=True)
        return
    post = shared.prefect.post
    try:
        block_type = shared.prefect.get(f"/block_types/slug/{slug}")
    except urllib.error.HTTPError:
        block_type = post("/block_types/", {"name": slug.replace("-", " ").title(), "slug": slug})
    fields = {
        "title": slug,
        "type": "object",
        "properties": {key: {"type": "string"} for key in data},
        "secret_fields": secrets,
    }
    schema = post("/block_schemas/", {"fields": fields, "block_type_id": block_type["id"], "capabilities": []})
    document = {"name": name, "data": data, "block_schema_id": schema["id"], "block_type_id": block_type["id"]}
    post("/block_documents/", document)


Given = tuple[tuple[str, ...], dict[str, str], bytes]


@dataclass(frozen=True, slots=True)
class Giving:
    """The options, environment and standard input that give a password for registries to a command."""

    shared: Shared
    directory: Path
    password: str
    hosts: tuple[str, ...]

    def by_environment(self) -> Given:
        return (), {"DIST_USERNAME": USER, "DIST_PASSWORD": self.password}, b""

    def by_standard_input(self) -> Given:
        return ("--username", USER, "--password-stdin"), {}, self.password.encode()

    def by_config(self) -> Given:
        auths = {host: {"auth": base64.b64encode(f"{USER}:{self.password}".encode()).decode()} for host in self.hosts}
        (self.directory / "config.json").write_text(json.dumps({"auths": auths}))
        return (), {"DOCKER_CONFIG": str(self.directory)}, b""

    def by_helper(self) -> Given:
        (self.directory / "config.json").write_text(json.dumps({"credHelpers": dict.fromkeys(self.hosts, "kept")}))
        answer = json.dumps({"Username": USER, "Secret": self.password})
        program = self.directory / "docker-credential-kept"
        program.write_text(f"#!/bin/sh\ncat >/dev/null\ncat <<'END'\n{answer}\nEND\n")
        program.chmod(0o755)
        path = f"{self.directory}{os.pathsep}{os.environ['PATH']}"
        return (), {"DOCKER_CONFIG": str(self.directory), "PATH": path}, b""

    def by_header(self) -> Given:
        header = f"Basic {base64.b64encode(f'{USER}:{self.password}'.encode()).decode()}"
        hosts = {host: {"headers": {"Authorization": '{{env "HEADER"}}', "X-Key": self.password}} for host in self.hosts}
        (self.directory / "hosts.yaml").write_text(json.dumps({"registries": hosts}))
        return ("--hosts", str(self.directory / "hosts.yaml")), {"HEADER": header}, b""

    def by_block(self) -> Given:
        for number, host in enumerate(self.hosts):
            data = {"registry": host, "username": USER, "password": self.password}
            block(self.shared, "registry-credentials", f"ours-{number}", data, [])
        return ("--credentials", "ours-0", "--credentials", "ours-1"), {}, b""

    def by_docker_block(self) -> Given:
        for number, host in enumerate(self.hosts):
            data = {"registry_url": host, "username": USER, "password": self.password}
            block(self.shared, "docker-registry-credentials", f"theirs-{number}", data, ["password"])
        names = [f"docker-registry-credentials/theirs-{number}" for number in range(2)]
        return ("--credentials", names[0], "--credentials", names[1]), {}, b""


WAYS = [name for name in vars(Giving) if name.startswith("by_")]


def check(shared: Shared, seen: str, *secrets: str) -> None:
    """Check that a run is recorded, as `seen` shows, and that no secret is recorded."""
    kept: list[str] = []

    def recorded() -> bool:
        kept[:] = texts(shared.home)
        return any(seen in text for text in kept)

    assert poll_until(recorded)
    for secret in secrets:
        assert not [text[:2000] for text in kept if found(secret, text)]


@pytest.mark.parametrize("way", WAYS)
def test_a_password_for_a_registry_is_not_recorded(
    shared: Shared, registries: Callable[[str], tuple[FakeRegistry, FakeRegistry]], tmp_path: Path, way: str
) -> None:
    password = f"secret-{way}-7f3a"
    right, wrong = registries(password)
    options, environment, stdin = getattr(Giving(shared, tmp_path, password, (right.host, wrong.host)), way)()
    for registry, code in ((right, 0), (wrong, 1)):
        name = f"{registry.host}/app:v1"
        arguments = ("--store", tmp_path / "store", "fetch", name, *options)
        result = dist(*arguments, stdin=stdin, **environment, **shared.environment)
        assert result.code == code, result.err
        assert password not in result.out.decode() + result.err
    check(shared, f"fetch {wrong.host}/app:v1", password)


@pytest.mark.parametrize("written", ["literal", "env", "file"])
@pytest.mark.parametrize("section", ["registries", "creds"])
def test_a_password_in_a_configuration_is_not_recorded(
    shared: Shared,
    registries: Callable[[str], tuple[FakeRegistry, FakeRegistry]],
    tmp_path: Path,
    written: str,
    section: str,
) -> None:
    password = f"secret-{section}-{written}-7f3a"
    right, wrong = registries(password)
    (tmp_path / "password").write_text(password)
    said = {"literal": password, "env": '{{env "MIRROR_PASSWORD"}}', "file": f'{{{{file "{tmp_path}/password"}}}}'}[written]
    who = {"user": USER, "pass": said}
    hosts = (right.host, wrong.host)
    creds: Any = dict.fromkeys(hosts, who) if section == "registries" else [{"registry": host, **who} for host in hosts]
    with FakeRegistry() as target:
        sync = [
            {"type": "image", "source": f"{host}/app:v1", "target": f"{target.host}/{number}:v1"}
            for number, host in enumerate(hosts)
        ]
        config = tmp_path / "mirror.yaml"
        config.write_text(json.dumps({"store": str(tmp_path / "store"), section: creds, "sync": sync}))
        environment = {
            "MIRROR_PASSWORD": password,
            "DIST_METRICS": f"http://{USER}:{password}@127.0.0.1:1",
            **shared.environment,
        }
        result = dist("mirror", config, **environment)
    assert result.code == 1, result.err
    assert "1 added" in result.out.decode()
    assert password not in result.out.decode() + result.err
    check(shared, f"{target.host}/1:v1", password)


@pytest.mark.parametrize("kind", ["secrets", "credentials"])
def test_the_secrets_of_a_store_are_not_recorded(shared: Shared, s3: S3Server, kind: str) -> None:
    where = {"endpoint_url": s3.endpoint, "client_kwargs": {"region_name": s3.region}}
    wrong = f"secret-{kind}-7f3a"
    with FakeRegistry() as registry:
        images.load(registry, "app", IMAGE, "v1")
        for secret, code in ((s3.secret, 0), (wrong, 1)):
            name = f"{kind}-{code}"
            if kind == "credentials":
                keys = {"aws_access_key_id": s3.key, "aws_secret_access_key": secret}
                block(shared, "aws-credentials", name, keys, ["aws_secret_access_key"])
                data: dict[str, Any] = {"credentials": name}
            else:
                data = {"secrets": {"key": s3.key, "secret": secret}}
            block(shared, "content-store", name, {"url": f"{s3.url}/{name}", "options": where, **data}, [])
            result = dist("--store", f"block:{name}", "fetch", f"{registry.host}/app:v1", **shared.environment)
            assert result.code == code, result.err
            assert secret not in result.out.decode() + result.err
        check(shared, f"{s3.url}/{kind}-1", s3.secret, wrong)


def test_the_server_refuses_clients_without_its_password(shared: Shared) -> None:
    for path, body in (("/block_documents/filter", {"include_secrets": True}), ("/flow_runs/filter", {})):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            PrefectServer(shared.prefect.url).post(path, body)
    block(shared, "registry-credentials", "read", {"registry": "a.example", "username": USER, "password": "secret-read"}, [])
    read = shared.prefect.post("/block_documents/filter", {"include_secrets": True})
    assert "secret-read" in str(read)  # with the password, the server answers
    assert not any(found("secret-read", text) for text in texts(shared.home))
