"""Configurations of runs from a block, a path, a URL or a parameter, and secrets that blocks and parameters must not have."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from prefect_dist.mirror.config import Mirror
from prefect_dist.ocispec.errors import InvalidInput
from tests.peers.prefect import PrefectServer
from tests.remotes.asking import check_message

TEXT = """\
name: nightly
store: /var/lib/mirror
lock: /var/lib/nightly.lock.json
registries:
  ghcr.io: {user: robot, pass: '{{env "ROBOT"}}'}
sync:
  - {source: redis, target: r.example/redis, type: repository}
"""
BARE = "\nsync:\n  - {source: redis, target: r.example/redis, type: repository}\n"


@pytest.fixture(autouse=True)
def _api(prefect: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("ROBOT", "s3cret")
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        yield


def read(config: str) -> Mirror:
    from prefect_dist.flows.blocks import PrefectBlocks
    from prefect_dist.mirror.loading import load_config

    return load_config(config, PrefectBlocks())


def save_block(text: str, name: str) -> str:
    from prefect_dist.flows.blocks import MirrorConfiguration

    MirrorConfiguration(text=text).save(name, overwrite=True)
    return f"block:{name}"


@pytest.mark.parametrize("kind", ["path", "url", "block", "text", "json"])
def test_a_configuration_loads_from_a_path_a_url_a_block_and_a_parameter(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(TEXT)
    config = {
        "path": lambda: str(tmp_path / "file.yaml"),
        "url": lambda: f"file://{tmp_path}/file.yaml",
        "block": lambda: save_block(TEXT, "nightly"),
        "text": lambda: TEXT,
        "json": lambda: json.dumps(
            {
                "name": "nightly",
                "store": "/var/lib/mirror",
                "lock": "/var/lib/nightly.lock.json",
                "registries": {"ghcr.io": {"user": "robot", "pass": '{{env "ROBOT"}}'}},
                "sync": [{"source": "redis", "target": "r.example/redis", "type": "repository"}],
            }
        ),
    }[kind]()

    mirror = read(config)

    assert (mirror.name, mirror.store, mirror.lock) == ("nightly", "/var/lib/mirror", "/var/lib/nightly.lock.json")
    assert mirror.credentials["ghcr.io"].password == "s3cret"
    assert [entry.source for entry in mirror.entries] == ["docker.io/library/redis"]
    assert mirror.warnings == ()


def test_relative_paths_of_a_file_at_a_url_are_relative_to_the_url() -> None:
    with fsspec.open("memory://conf/team.yaml", "w") as file:
        file.write(f"store: cache\n{BARE}")
    mirror = read("memory://conf/team.yaml")
    assert (mirror.name, mirror.store) == ("team", "memory://conf/cache")
    assert mirror.lock == "memory://conf/team.lock.json"


def test_a_missing_file_at_a_url_is_an_error_that_names_the_url() -> None:
    with pytest.raises(InvalidInput, match=r"^memory://conf/none\.yaml: no such file$"):
        read("memory://conf/none.yaml")


def test_a_missing_configuration_block_is_an_error_that_names_the_block() -> None:
    with pytest.raises(InvalidInput, match=r"^Mirror Configuration block 'none' not found; create it under Blocks"):
        read("block:none")


@pytest.mark.parametrize("kind", ["block", "text"])
def test_a_configuration_without_a_file_warns_that_it_has_no_lock_file(kind: str) -> None:
    config = save_block(BARE, "bare") if kind == "block" else BARE
    mirror = read(config)
    assert mirror.lock is None
    assert mirror.name == ("bare" if kind == "block" else "configuration")
    (warning,) = mirror.warnings
    assert "no lock file: this mirror cannot be checked or pruned" in warning


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "store: cache",
            ":1: store: expected a URL or an absolute path, got cache: a block or a parameter has no directory",
        ),
        ("lock: x.json", ":1: lock: expected a URL or an absolute path"),
        ("registries: {a.example: {caFile: ca.pem}}", ":1: registries.a.example.caFile: expected a URL or an absolute path"),
        ("registries: {a.example: {user: u, pass: topsecret}}", ":1: registries.a.example.pass: expected {{env"),
        ("registries: {a.example: {token: topsecret}}", ":1: registries.a.example.token: expected {{env"),
        ("registries: {a.example: {headers: {X-Key: topsecret}}}", ":1: registries.a.example.headers.X-Key: expected {{env"),
        ("creds: [{registry: a.example, user: u, pass: topsecret}]", ":1: creds[0].pass: expected {{env"),
        (
            "creds: [{registry: a.example, clientCert: x, clientKey: topsecret}]",
            ":1: creds[0].clientKey: expected {{env",
        ),
        ("store: s3://user:topsecret@bucket/x", "store s3://…@bucket/x: remove user and password from the location"),
    ],
)
@pytest.mark.parametrize("kind", ["block", "text"])
def test_a_block_or_parameter_with_relative_paths_or_secrets_is_refused(kind: str, settings: str, message: str) -> None:
    config = save_block(settings + BARE, "wrong") if kind == "block" else settings + BARE
    with pytest.raises(InvalidInput) as caught:
        read(config)
    check_message(caught.value, "block:wrong" if kind == "block" else "configuration", message, hides=["topsecret"])


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("/etc/dist/team.yaml", "team"),
        ("s3://bucket/team.yaml", "team"),
        ("block:team", "team"),
        (TEXT, "nightly"),
        (BARE, "configuration"),
        ('{"sync": []}', "configuration"),
        ("a: b\nname: it's me\n", "configuration"),
    ],
)
def test_the_display_name_of_a_run_comes_from_the_location_or_the_key_name(config: str, name: str) -> None:
    from prefect_dist.mirror.loading import display_name

    assert display_name(config) == name
