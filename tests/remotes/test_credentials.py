import json
import pickle
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from ocispec.errors import InvalidInput
from remotes import Credentials, DockerConfig
from tests.remotes.asking import check_told, user

SECRET = "hunter2hunter2"
ME = user("me", SECRET)


def encoded(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def write(directory: Path, document: Any) -> DockerConfig:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    (directory / "config.json").write_bytes(raw)
    return DockerConfig.load({"DOCKER_CONFIG": str(directory)})


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": encoded(f"me:{SECRET}")}, ME),
        ({"username": "me", "password": SECRET}, ME),
        ({"auth": encoded("other:other"), "username": "me", "password": SECRET}, ME),
        ({"auth": encoded("me:with:colons")}, user("me", "with:colons")),
        ({"auth": encoded("me:")}, user("me", "")),
        ({"auth": encoded(f"me:{SECRET}\0\0")}, ME),
        ({"auth": encoded("m\xfc:p\xe4ss")}, user("m\xfc", "p\xe4ss")),
        ({"auth": ""}, None),
        ({"username": "me"}, None),
        ({"email": "me@example.org"}, None),
        ({}, None),
    ],
)
def test_entries(tmp_path: Path, entry: dict[str, str], expected: Credentials | None) -> None:
    config = write(tmp_path, {"auths": {"registry.example:5000": entry}, "credsStore": "pass"})
    assert config.get("registry.example:5000") == expected
    assert config.get("registry.example") is None


@pytest.mark.parametrize(
    "key", ["registry.example", "https://registry.example", "http://registry.example/", "https://registry.example/v2/"]
)
def test_keys_may_be_urls(tmp_path: Path, key: str) -> None:
    assert write(tmp_path, {"auths": {key: {"auth": encoded(f"me:{SECRET}")}}}).get("registry.example") == ME


@pytest.mark.parametrize(
    "key", ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://docker.io", "registry-1.docker.io"]
)
@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_has_many_names(tmp_path: Path, key: str, host: str) -> None:
    config = write(tmp_path, {"auths": {key: {"auth": encoded(f"me:{SECRET}")}}})
    assert config.get(host) == ME
    assert config.get("ghcr.io") is None


@pytest.mark.parametrize("document", [{}, {"auths": None}, {"auths": {}}])
def test_a_file_without_entries(tmp_path: Path, document: dict[str, Any]) -> None:
    assert write(tmp_path, document).get("docker.io") is None


def test_no_file(tmp_path: Path) -> None:
    assert DockerConfig.load({"DOCKER_CONFIG": str(tmp_path / "nowhere")}).get("docker.io") is None


def test_the_home_directory_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".docker").mkdir()
    write(tmp_path / ".docker", {"auths": {"ghcr.io": {"auth": encoded(f"me:{SECRET}")}}})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DockerConfig.load({}).get("ghcr.io") == ME
    assert DockerConfig.load({"DOCKER_CONFIG": ""}).get("ghcr.io") == ME
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "elsewhere"))
    assert DockerConfig.load().get("ghcr.io") is None


@pytest.mark.parametrize(
    "document",
    [
        b"",
        f'{{"auths": {{"ghcr.io": {{"auth": "{SECRET}"'.encode(),
        f'{{"password": "{SECRET}\xff"}}'.encode("latin-1"),
        [SECRET],
        {"auths": [SECRET]},
        {"auths": {"ghcr.io": SECRET}},
        {"auths": {"ghcr.io": {"auth": SECRET + "!"}}},
        {"auths": {"ghcr.io": {"auth": SECRET + "\xe9"}}},
        {"auths": {"ghcr.io": {"auth": encoded(SECRET)}}},
        {"auths": {"ghcr.io": {"auth": encoded(b"\xff:" + SECRET.encode())}}},
        {"auths": {"ghcr.io": {"auth": [SECRET]}}},
        {"auths": {"ghcr.io": {"auth": 5}}},
    ],
    ids=range(12),
)
def test_a_damaged_file_shows_its_path_and_nothing_of_it(tmp_path: Path, document: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        write(tmp_path, document)
    check_told(caught.value, str(tmp_path / "config.json"), hides=[SECRET, encoded(SECRET)])


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InvalidInput) as caught:
        DockerConfig.load({"DOCKER_CONFIG": str(tmp_path)})
    check_told(caught.value, str(tmp_path / "config.json"), "Is a directory")


def test_a_password_shows_in_no_representation(tmp_path: Path) -> None:
    config = write(tmp_path, {"auths": {"ghcr.io": {"auth": encoded(f"me:{SECRET}")}}})
    for one in (ME, config, config.get("ghcr.io")):
        assert SECRET not in f"{one!r} {one}"
        assert encoded(f"me:{SECRET}") not in f"{one!r} {one}"


def test_basic() -> None:
    assert ME.basic() == "Basic " + encoded(f"me:{SECRET}")
    assert user("m\xfc", "\u2713").basic() == "Basic " + encoded("m\xfc:\u2713")
    assert pickle.loads(pickle.dumps(ME)) == ME  # noqa: S301 - our own bytes
