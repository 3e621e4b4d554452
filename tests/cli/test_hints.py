"""The remedies in messages about refused logins and untrusted certificates: a key of the configuration, or an option."""

import json
from pathlib import Path

import httpx

from prefect_dist.mirror.config import load
from tests import images
from tests.cli.dist import dist_direct
from tests.fakes.access import Basic
from tests.fakes.registry import FakeRegistry
from tests.peers.tls import self_signed

IMAGE = images.image(1280, layers=1)


def failure(tmp_path: Path, source: FakeRegistry, **said: object) -> str:
    """Return the error of a mirror run with this configuration."""
    entry = {"type": "image", "source": f"{source.host}/app:v1", "target": "127.0.0.1:1/app:v1"}
    path = tmp_path / "mirror.yaml"
    lines = [f'"{key}": {json.dumps(value)}' for key, value in {**said, "store": "store", "sync": [entry]}.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    result = dist_direct("mirror", "--quiet", "--dry-run", "--retries", "0", path)
    assert result.code == 1
    assert " --" not in result.err
    return result.err.replace(str(path), "FILE")


def test_the_remedy_for_an_untrusted_certificate_names_the_configuration(tmp_path: Path) -> None:
    with FakeRegistry(tls=self_signed(tmp_path)) as source:
        images.load(source, "app", IMAGE, "v1")
        ours = failure(tmp_path, source, registries={source.host: {"tls": "enabled"}})
        regsync = failure(tmp_path, source, creds=[{"registry": source.host, "tls": "enabled"}])
    assert f"; add its CA with caFile, or skip verification with tls: insecure, in FILE:2: registries.{source.host} (" in ours
    assert "is not trusted; add its CA with regcert, or skip verification with tls: insecure, in FILE:2: creds[0] (" in regsync


def test_the_remedy_for_an_unnamed_registry_adds_it_to_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mirror.yaml"
    path.write_text('{"sync": [{"type": "image", "source": "a.example/x", "target": "b.example/x"}]}')
    advice = load(str(path)).hosts.advice_at(httpx.URL("https://a.example/v2/")).for_server("a.example")
    assert advice.https == f"set tls: enabled in an entry for a.example in registries of {path}"


def test_the_remedy_for_a_plain_http_registry_names_the_configuration(tmp_path: Path) -> None:
    with FakeRegistry() as source:
        message = failure(tmp_path, source, registries={source.host: {"tls": "enabled"}})
    assert f"does not use TLS; for plain http, set tls: disabled in FILE:2: registries.{source.host}" in message


def test_the_remedy_for_missing_credentials_names_the_configuration(tmp_path: Path) -> None:
    with FakeRegistry(auth=Basic("me", "secret")) as source:
        path = tmp_path / "mirror.yaml"
        entry = {"type": "image", "source": f"{source.host}/app:v1", "target": "127.0.0.1:1/app:v1"}
        for said, way in (
            ({}, "set user and pass, or block, in registries of"),
            ({"creds": [{"registry": "a.example"}]}, "set user and pass in creds of"),
        ):
            path.write_text(json.dumps({"store": "store", "sync": [entry], **said}))
            assert f"; {way} {path}, " in dist_direct("mirror", "--dry-run", "--retries", "0", path).err


def test_remedies_without_a_configuration_name_options(tmp_path: Path) -> None:
    with FakeRegistry(tls=self_signed(tmp_path)) as source:
        hosts, listed = tmp_path / "hosts.yaml", tmp_path / "all.txt"
        hosts.write_text(f"registries: {{{source.host}: {{tls: enabled}}}}\n")
        listed.write_text(f"{source.host}/app:v1\n")
        seed = "--store", tmp_path / "store", "seed", listed, "--to", "127.0.0.1:1", "--hosts", hosts, "--dry-run"
        message = dist_direct(*seed, "--retries", "0").err
    assert f"add its CA with --ca-file, or skip verification with --insecure {source.host}" in message
