import json
import logging
import os
import pickle
import subprocess
import weakref
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec.errors import Denied, InvalidInput
from prefect_dist.remotes import credentials
from prefect_dist.remotes.credentials import Credentials, DockerConfig, Origin, StaticCredentials, chain_sources
from tests.peers.processes import PATIENCE_S, require
from tests.peers.registry import LOGIN, cncf_registry
from tests.remotes.asking import check_message, user
from tests.remotes.test_helpers import SECRET, UNKNOWN, Programs, knows

ME = user("me", SECRET)
TOKEN = Credentials("", "", identity_token=SECRET)
HUB_SERVER = "https://index.docker.io/v1/"
# The files in the order in which they are read, below the directory for which `at` makes the environment.
RUNTIME, CONFIG, DOCKER = "run/containers/auth.json", "config/containers/auth.json", "docker/config.json"


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
        ({"auth": encoded("me:"), "identitytoken": SECRET}, Credentials("me", "", identity_token=SECRET)),
        ({"auth": encoded(f"me:{SECRET}"), "identitytoken": "other"}, Credentials("me", SECRET, identity_token="other")),
        ({"username": "me", "password": SECRET, "identitytoken": "x"}, Credentials("me", SECRET, identity_token="x")),
        ({"username": "me", "identitytoken": SECRET}, Credentials("me", "", identity_token=SECRET)),
        ({"identitytoken": SECRET}, TOKEN),
        ({"identitytoken": ""}, None),
        ({"identitytoken": None, "auth": None}, None),
        ({"auth": ""}, None),
        ({"username": "me"}, None),
        ({"email": "me@example.org"}, None),
        ({}, None),
    ],
)
def test_entries_of_a_file_become_credentials(tmp_path: Path, entry: dict[str, str], expected: Credentials | None) -> None:
    config = write(tmp_path, {"auths": {"registry.example:5000": entry}})
    assert config.get("registry.example:5000") == expected
    assert config.get("registry.example") is None


@pytest.mark.parametrize(
    "key",
    [
        "registry.example",
        "https://registry.example",
        "http://registry.example/",
        "https://registry.example/v2/",
        "https://me:x@registry.example",
    ],
)
def test_keys_may_be_urls(tmp_path: Path, key: str) -> None:
    assert write(tmp_path, {"auths": {key: {"auth": encoded(f"me:{SECRET}")}}}).get("registry.example") == ME


@pytest.mark.parametrize(
    "key", ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://docker.io", "registry-1.docker.io"]
)
@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_all_names_of_docker_hub_find_the_same_entry(tmp_path: Path, key: str, host: str) -> None:
    config = write(tmp_path, {"auths": {key: {"auth": encoded(f"me:{SECRET}")}}})
    assert config.get(host) == ME
    assert config.get("ghcr.io") is None


@pytest.mark.parametrize("document", [{}, {"auths": None}, {"auths": {}}])
def test_a_file_without_entries_has_no_credentials(tmp_path: Path, document: dict[str, Any]) -> None:
    assert write(tmp_path, document).get("docker.io") is None


def test_a_missing_file_has_no_credentials(tmp_path: Path) -> None:
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
        {"auths": {"ghcr.io": {"username": "me", "password": 1.5}}},
        {"auths": {"ghcr.io": {"identitytoken": [SECRET]}}},
        {"auths": {f"https://me:{SECRET}@ghcr.io": {"auth": 5}}},
        {"auths": {"ghcr.io\n" + "a" * 5000: {"auth": 5}}},
        {"credHelpers": [SECRET]},
        {"credHelpers": {"ghcr.io": [SECRET]}},
        {"credHelpers": {"ghcr.io": f"../{SECRET}"}},
        {"credsStore": {SECRET: 1}},
        {"credsStore": f"/{SECRET}"},
    ],
    ids=range(21),
)
def test_the_error_for_a_damaged_file_names_the_path_and_omits_the_content(tmp_path: Path, document: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        write(tmp_path, document)
    check_message(caught.value, str(tmp_path / "config.json"), hides=[SECRET, encoded(SECRET)])


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InvalidInput) as caught:
        DockerConfig.load({"DOCKER_CONFIG": str(tmp_path)})
    check_message(caught.value, str(tmp_path / "config.json"), "Is a directory")


def test_no_representation_shows_a_password(tmp_path: Path) -> None:
    config = write(tmp_path, {"auths": {"ghcr.io": {"auth": encoded(f"me:{SECRET}")}}})
    for one in (ME, config, config.get("ghcr.io")):
        assert SECRET not in f"{one!r} {one}"
        assert encoded(f"me:{SECRET}") not in f"{one!r} {one}"


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"auths": {"ghcr.io": {"auth": encoded(SECRET)}}}, "auths.ghcr.io.auth"),
        ({"auths": {"ghcr.io/a/b": {"identitytoken": 5}}}, "auths.ghcr.io/a/b.identitytoken"),
        ({"auths": {"ghcr.io": SECRET}}, "auths.ghcr.io"),
        ({"auths": SECRET}, "auths"),
        ({"credHelpers": SECRET}, "credHelpers"),
        ({"credHelpers": {"ghcr.io": "a/b"}}, "credHelpers.ghcr.io"),
        ({"credsStore": "a b"}, "credsStore"),
    ],
)
def test_a_rejection_names_the_source_of_the_credentials(tmp_path: Path, document: Any, place: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        write(tmp_path, document)
    check_message(caught.value, f"{tmp_path / 'config.json'}: {place}: expected ", hides=[SECRET])


def test_basic_encodes_user_and_password() -> None:
    assert ME.basic() == "Basic " + encoded(f"me:{SECRET}")
    assert user("m\xfc", "\u2713").basic() == "Basic " + encoded("m\xfc:\u2713")
    assert pickle.loads(pickle.dumps(ME)) == ME  # noqa: S301 - our own bytes
    assert weakref.ref(ME)() is ME


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (ME, True),
        (user("me", ""), True),
        (Credentials("me", SECRET, identity_token="x"), True),
        (Credentials("me", "", identity_token=""), True),
        (Credentials("me", "", identity_token=SECRET), False),
        (TOKEN, False),
    ],
)
def test_an_identity_token_does_not_count_as_a_password(one: Credentials, *, expected: bool) -> None:
    assert one.has_password == expected
    assert SECRET not in f"{one!r} {one}"
    if expected:
        assert one.basic() == "Basic " + encoded(f"{one.username}:{one.password}")
        return
    with pytest.raises(Denied) as caught:
        one.basic()
    check_message(caught.value, "got an identity token", hides=[SECRET])


def environment(directory: Path, files: Mapping[str, Any]) -> dict[str, str]:
    """The environment in which only these files exist."""
    for name, document in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps(document))
    return {
        "XDG_RUNTIME_DIR": str(directory / "run"),
        "XDG_CONFIG_HOME": str(directory / "config"),
        "DOCKER_CONFIG": str(directory / "docker"),
    }


def auths(*keys: str) -> dict[str, Any]:
    """A document in which each user has the name of the key."""
    return {"auths": {key: {"auth": encoded(f"{key.replace(':', ';')}:{SECRET}")} for key in keys}}


def name(found: Credentials | None) -> str | None:
    return found.username.replace(";", ":") if found else None


PATHS = auths("r.example", "r.example/a", "r.example/a/b", "r.example/ab", "other.example/a/b/c")
PORTS = auths("localhost", "localhost:5000", "localhost:5000/a")
HUB = auths("docker.io/library/redis", "docker.io/library", "docker.io", HUB_SERVER)


@pytest.mark.parametrize(
    ("document", "host", "repository", "expected"),
    [
        (PATHS, "r.example", "", "r.example"),
        (PATHS, "r.example", "x", "r.example"),
        (PATHS, "r.example", "a", "r.example/a"),
        (PATHS, "r.example", "a/x", "r.example/a"),
        (PATHS, "r.example", "a/b", "r.example/a/b"),
        (PATHS, "r.example", "a/b/c/d", "r.example/a/b"),
        (PATHS, "r.example", "a/bc", "r.example/a"),
        (PATHS, "r.example", "ab", "r.example/ab"),
        (PATHS, "r.example", "abc", "r.example"),
        (PATHS, "r.example:443", "a", None),
        (PATHS, "r.exampl", "a", None),
        (PATHS, "other.example", "a/b", None),
        (PATHS, "other.example", "a/b/c", "other.example/a/b/c"),
        (auths("r.example/a/"), "r.example", "a/b", "r.example/a/"),
        (auths("https://r.example/a"), "r.example", "b", "https://r.example/a"),
        (auths("https://r.example", "r.example"), "r.example", "b", "r.example"),
        (PORTS, "localhost:5000", "b", "localhost:5000"),
        (PORTS, "localhost:5000", "a/b", "localhost:5000/a"),
        (PORTS, "localhost", "a/b", "localhost"),
        (PORTS, "localhost:5001", "a/b", None),
        (auths("http://localhost:5000/v1/"), "localhost:5000", "a", "http://localhost:5000/v1/"),
        (HUB, "docker.io", "library/redis", "docker.io/library/redis"),
        (HUB, "docker.io", "library/mysql", "docker.io/library"),
        (HUB, "index.docker.io", "library/mysql", "docker.io/library"),
        (HUB, "docker.io", "me/mine", "docker.io"),
        (auths("registry-1.docker.io", HUB_SERVER), "docker.io", "library/redis", HUB_SERVER),
        (auths(HUB_SERVER + "access-token", HUB_SERVER), "docker.io", "library/redis", HUB_SERVER),
        ({"auths": {"docker.io": {}, **auths(HUB_SERVER)["auths"]}}, "docker.io", "library/redis", HUB_SERVER),
        ({"auths": {"r.example/a": {}, **auths("r.example")["auths"]}}, "r.example", "a/b", None),
        ({"auths": {"r.example/a": {}, **auths("r.example")["auths"]}}, "r.example", "b", "r.example"),
    ],
)
def test_the_longest_key_wins(tmp_path: Path, document: Any, host: str, repository: str, expected: str | None) -> None:
    assert name(DockerConfig.load(environment(tmp_path, {RUNTIME: document})).get(host, repository)) == expected
    if all(document["auths"].values()):
        by_hand = StaticCredentials({key: user(key.replace(":", ";"), SECRET) for key in document["auths"]})
        assert name(by_hand.get(host, repository)) == expected


@pytest.mark.parametrize(
    ("files", "host", "repository", "expected"),
    [
        ({}, "r.example", "a", None),
        ({RUNTIME: auths("r.example")}, "r.example", "a", "r.example"),
        ({CONFIG: auths("r.example")}, "r.example", "a", "r.example"),
        ({DOCKER: auths("r.example")}, "r.example", "a", "r.example"),
        ({RUNTIME: auths("r.example"), DOCKER: auths("r.example/a")}, "r.example", "a", "r.example"),
        ({RUNTIME: auths("r.example/a"), CONFIG: auths("r.example")}, "r.example", "a", "r.example/a"),
        (
            {RUNTIME: auths("r.example/b"), CONFIG: auths("r.example"), DOCKER: auths("r.example/a")},
            "r.example",
            "a",
            "r.example",
        ),
        ({RUNTIME: auths("q.example"), CONFIG: {}, DOCKER: auths("r.example/a")}, "r.example", "a", "r.example/a"),
        ({RUNTIME: {"auths": {"r.example": {}}}, DOCKER: auths("r.example")}, "r.example", "a", "r.example"),
        ({RUNTIME: auths("docker.io"), DOCKER: auths(HUB_SERVER)}, "docker.io", "library/redis", "docker.io"),
    ],
)
def test_the_first_file_wins(tmp_path: Path, files: dict[str, Any], host: str, repository: str, expected: str | None) -> None:
    environ = environment(tmp_path, files)
    assert name(DockerConfig.load(environ).get(host, repository)) == expected


def test_registry_auth_file_replaces_all_other_files(tmp_path: Path) -> None:
    environ = environment(tmp_path, {"mine.json": auths("r.example"), RUNTIME: auths("r.example/a", "q.example")})
    config = DockerConfig.load(environ | {"REGISTRY_AUTH_FILE": str(tmp_path / "mine.json")})
    assert name(config.get("r.example", "a")) == "r.example"
    assert config.get("q.example", "a") is None


def test_a_missing_registry_auth_file_causes_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environ = environment(tmp_path, {RUNTIME: auths("r.example"), DOCKER: auths("r.example"), "empty.json": {}})
    assert DockerConfig.load(environ | {"REGISTRY_AUTH_FILE": str(tmp_path / "empty.json")}).get("r.example") is None
    assert DockerConfig.load({"XDG_RUNTIME_DIR": "/dev/null", "DOCKER_CONFIG": "/dev/null"}).get("r.example") is None
    assert caplog.messages == []
    absent = str(tmp_path / "absent.json")
    assert DockerConfig.load(environ | {"REGISTRY_AUTH_FILE": absent}).get("r.example") is None
    (message,) = caplog.messages
    assert f"REGISTRY_AUTH_FILE: the file {absent} does not exist" in message


def test_the_folder_of_podman_is_read_without_a_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_RUN", tmp_path)
    environ = environment(tmp_path, {f"{os.getuid()}/auth.json": auths("r.example")})
    assert DockerConfig.load(environ).get("r.example") is None
    assert name(DockerConfig.load(environ | {"XDG_RUNTIME_DIR": ""}).get("r.example")) == "r.example"


@pytest.mark.parametrize("damaged", [RUNTIME, CONFIG, DOCKER])
def test_every_error_for_a_damaged_file_names_it(tmp_path: Path, damaged: str) -> None:
    environ = environment(tmp_path, {RUNTIME: auths("r.example")} | {damaged: [SECRET]})
    with pytest.raises(InvalidInput) as caught:
        DockerConfig.load(environ)
    check_message(caught.value, str(tmp_path / damaged), hides=[SECRET])


def test_a_home_that_is_not_a_directory_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    assert DockerConfig.load({"XDG_RUNTIME_DIR": "/dev/null"}).get("r.example") is None


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_has_no_files() -> None:
    assert DockerConfig.load({"XDG_RUNTIME_DIR": "/dev/null"}).get("r.example") is None


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Helpers: `first` and `second` return their name as the user, `knows-nothing` has no credentials, `fails` fails."""
    (directory := tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    programs = Programs(directory)
    programs.install("first", knows("first", SECRET))
    programs.install("second", knows("second", SECRET))
    programs.install("knows-nothing", UNKNOWN)
    programs.install("fails", f"echo {SECRET}; exit 1")
    return programs


AUTHS = auths("r.example", "r.example/a", "q.example")


@pytest.mark.parametrize(
    ("document", "wanted", "expected", "calls"),
    [
        ({"credHelpers": {"r.example": "first"}}, "r.example/a", "first", ["first get r.example"]),
        ({"credHelpers": {"r.example": "first"}}, "q.example/a", None, []),
        ({"credHelpers": {"r.example:5000": "first"}}, "r.example:5000/a", "first", ["first get r.example:5000"]),
        ({"credHelpers": {"r.example": "first"}, **AUTHS}, "r.example/a", "first", ["first get r.example"]),
        ({"credHelpers": {"r.example": "first"}, **AUTHS}, "q.example/a", "q.example", []),
        ({"credHelpers": {"r.example": "knows-nothing"}, **AUTHS}, "r.example/a", None, ["knows-nothing get r.example"]),
        ({"credHelpers": {"r.example": ""}, **AUTHS}, "r.example/a", "r.example/a", []),
        (
            {"credHelpers": {"r.example/a": "first", "r.example": "second"}},
            "r.example/a/b",
            "first",
            ["first get r.example"],
        ),
        (
            {"credHelpers": {"r.example/a": "first", "r.example": "second"}},
            "r.example/ab",
            "second",
            ["second get r.example"],
        ),
        ({"credHelpers": {"r.example/a": "first"}, **AUTHS}, "r.example/b", "r.example", []),
        ({"credHelpers": {"r.example/a": "", "r.example": "first"}, **AUTHS}, "r.example/a", "r.example/a", []),
        ({"credsStore": "first"}, "r.example/a", "first", ["first get r.example"]),
        ({"credsStore": "first", "auths": {"r.example": {}}}, "r.example/a", "first", ["first get r.example"]),
        ({"credsStore": "first", **AUTHS}, "r.example/a", "r.example/a", []),
        ({"credsStore": "first", "credHelpers": {"r.example": "second"}}, "r.example/a", "second", ["second get r.example"]),
        ({"credsStore": "first", "credHelpers": {"r.example": ""}}, "r.example/a", None, []),
        ({"credsStore": "first", "credHelpers": {"r.example": ""}}, "q.example/a", "first", ["first get q.example"]),
        ({"credsStore": ""}, "r.example/a", None, []),
        ({"credsStore": "knows-nothing"}, "r.example/a", None, ["knows-nothing get r.example"]),
        ({"credsStore": "first"}, "docker.io/a/b", "first", [f"first get {HUB_SERVER}"]),
        ({"credHelpers": {HUB_SERVER: "first"}}, "docker.io/a/b", "first", [f"first get {HUB_SERVER}"]),
        ({"credHelpers": {"docker.io": "first"}}, "docker.io/a/b", "first", ["first get docker.io"]),
        ({"credHelpers": {"docker.io": "first", HUB_SERVER: "second"}}, "docker.io/a", "first", ["first get docker.io"]),
        ({"credHelpers": {"docker.io/a": "first"}}, "docker.io/a/b", "first", ["first get docker.io"]),
    ],
)
def test_helpers_are_run_for_their_registries(
    programs: Programs, document: Any, wanted: str, expected: str | None, calls: list[str]
) -> None:
    config = DockerConfig.load(environment(programs.directory, {DOCKER: document}))
    assert programs.calls == []
    host, _, repository = wanted.partition("/")
    for _ in range(3):
        assert name(config.get(host, repository)) == expected
    assert programs.calls == calls


def test_the_next_file_is_read_if_a_helper_has_no_credentials(tmp_path: Path, programs: Programs) -> None:
    files = {RUNTIME: {"credHelpers": {"r.example": "knows-nothing"}}, CONFIG: {"credsStore": "first"}, DOCKER: AUTHS}
    config = DockerConfig.load(environment(tmp_path, files))
    assert name(config.get("r.example", "a")) == "first"
    assert name(config.get("r.example", "b")) == "first"
    assert programs.calls == ["knows-nothing get r.example", "first get r.example"]


@pytest.mark.parametrize(
    ("file", "key", "wanted", "origin"),
    [
        (DOCKER, "r.example", "r.example/a", ("auths.r.example", "'docker login r.example'")),
        (DOCKER, HUB_SERVER, "docker.io/a", (f"auths.{HUB_SERVER}", "'docker login docker.io'")),
        (DOCKER, f"https://me:{SECRET}@r.example/v1/", "r.example/a", ("auths.r.example/v1/", "'docker login r.example'")),
        (DOCKER, "r.example/a", "r.example/a", ("auths.r.example/a", "'podman login r.example/a'")),
        (CONFIG, "r.example", "r.example/a", ("auths.r.example", "'podman login r.example'")),
    ],
)
def test_credentials_of_a_file_name_their_place_and_the_remedy(
    tmp_path: Path, file: str, key: str, wanted: str, origin: tuple[str, str]
) -> None:
    place, command = origin
    config = DockerConfig.load(environment(tmp_path, {file: {"auths": {key: {"auth": encoded(f"me:{SECRET}")}}}}))
    found = config.get(*wanted.split("/"))
    assert found == ME
    assert found.origin == Origin(f"{tmp_path / file}: {place}", f"log in again with {command}")
    assert found.description == f"the password of user 'me' (from {tmp_path / file}: {place})"


@pytest.mark.parametrize(
    ("document", "host", "key"),
    [
        ({"credsStore": "first"}, "r.example", "credsStore"),
        ({"credsStore": "first"}, "docker.io", "credsStore"),
        ({"credHelpers": {"r.example": "first"}}, "r.example", "credHelpers.r.example"),
    ],
)
def test_credentials_of_a_helper_name_the_helper_and_the_file(programs: Programs, document: Any, host: str, key: str) -> None:
    found = DockerConfig.load(environment(programs.directory, {DOCKER: document})).get(host, "a")
    assert found is not None
    assert found.origin == Origin(
        f"docker-credential-first, named in {programs.directory / DOCKER}: {key}",
        f"log in again with 'docker login {host}' or 'podman login {host}'",
    )


def test_a_helper_may_return_an_identity_token(tmp_path: Path, programs: Programs) -> None:
    programs.install("token", knows("<token>", SECRET))
    config = DockerConfig.load(environment(tmp_path, {DOCKER: {"credsStore": "token"}}))
    assert config.get("r.example", "a") == TOKEN


@pytest.mark.parametrize("document", [{"credsStore": "fails"}, {"credHelpers": {"r.example": "fails"}}])
def test_a_failing_helper_is_reported_and_not_run_again(
    tmp_path: Path, programs: Programs, caplog: pytest.LogCaptureFixture, document: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    config = DockerConfig.load(environment(tmp_path, {RUNTIME: document, DOCKER: AUTHS}))
    for repository in ("a", "b", "a"):
        with pytest.raises(Denied) as caught:
            config.get("r.example", repository)
        check_message(caught.value, "docker-credential-fails", "r.example", hides=[SECRET])
    assert programs.calls == ["fails get r.example"]
    assert SECRET not in f"{caplog.text} {config!r} {config}"


def test_a_helper_is_stopped_after_its_timeout(tmp_path: Path, programs: Programs) -> None:
    programs.install("hangs", "exec sleep 60")
    config = DockerConfig.load(environment(tmp_path, {DOCKER: {"credsStore": "hangs"}}), helper_timeout_s=0.2)
    with pytest.raises(Denied) as caught:
        config.get("r.example", "a")
    check_message(caught.value, "docker-credential-hangs", "r.example", "0.2 s")


def test_credentials_of_the_caller_come_first(tmp_path: Path, programs: Programs) -> None:
    config = DockerConfig.load(environment(tmp_path, {DOCKER: {"credsStore": "first"}}))
    by_hand = StaticCredentials({"r.example": ME, "index.docker.io": TOKEN})
    assert SECRET not in f"{by_hand!r} {by_hand}"
    get = chain_sources(by_hand.get, config.get)
    assert get("r.example", "a/b") == ME
    assert get("docker.io", "library/redis") == TOKEN
    assert programs.calls == []
    assert name(get("q.example", "a/b")) == "first"
    assert chain_sources()("r.example", "a") is None
    assert chain_sources(by_hand.get)("q.example", "a") is None


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cncf_registry(tmp_path_factory.mktemp("guarded"), basic_auth=True) as registry:
        yield registry.host


@pytest.mark.parametrize("namespace", ["", "/team"])
def test_a_file_written_by_skopeo_is_read(tmp_path: Path, guarded: str, namespace: str) -> None:
    path = str(tmp_path / "auth.json")
    user_and_file = [f"--username={LOGIN[0]}", "--password-stdin", f"--authfile={path}"]
    login = [require("skopeo", "skopeo"), "login", "--tls-verify=false", *user_and_file, guarded + namespace]
    subprocess.run(login, input=LOGIN[1].encode(), check=True, capture_output=True, timeout=PATIENCE_S)
    config = DockerConfig.load({"REGISTRY_AUTH_FILE": path})
    assert config.get(guarded, "team/app") == user(*LOGIN)
    assert config.get(guarded, "other/app") == (None if namespace else user(*LOGIN))


COMPONENTS = st.from_regex(r"[a-z0-9]{1,4}", fullmatch=True)
HOSTS = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z]{2,5})?(:[0-9]{1,5})?", fullmatch=True)
REPOSITORIES = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)


@given(HOSTS, REPOSITORIES, st.data())
def test_every_prefix_of_a_repository_is_a_key(host: str, repository: str, data: st.DataObject) -> None:
    keys = credentials._keys(host, repository)
    assert keys[0] == f"{host}/{repository}"
    assert keys[-1] == host
    assert [len(key) for key in keys] == sorted((len(key) for key in keys), reverse=True)
    assert len(keys) == repository.count("/") + 2
    length = data.draw(st.integers(0, len(keys) - 1))
    assert StaticCredentials({keys[length]: ME}).get(host, repository) == ME


@given(st.text())
def test_normalizing_a_key_twice_changes_nothing(key: str) -> None:
    assert credentials._normalize_key(credentials._normalize_key(key)) == credentials._normalize_key(key)


@given(st.text(st.characters(codec="utf-8", exclude_characters=":")), st.text(st.characters(codec="utf-8")))
def test_any_user_and_password_survive_encoding(username: str, password: str) -> None:
    assert credentials._decode_auth(encoded(f"{username}:{password}"), "here") == (username, password.rstrip("\0"))


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=2))
ENTRIES = st.dictionaries(st.sampled_from(["username", "password", "auth", "identitytoken", "email"]), JSON)


@given(
    st.dictionaries(st.text(max_size=12), ENTRIES | JSON, max_size=3), st.dictionaries(st.text(max_size=12), JSON, max_size=2)
)
def test_any_document_is_read_or_rejected_with_its_path(entries: dict[str, Any], helpers: dict[str, Any]) -> None:
    try:
        credentials._auths(entries, Path("here"))
        credentials._helpers(helpers, "here: credHelpers")
    except InvalidInput as exc:
        check_message(exc, "here: ")
