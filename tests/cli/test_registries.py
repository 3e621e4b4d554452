"""The CNCF registry in production settings: TLS, client certificates, and tokens that expire."""

from pathlib import Path

import pytest

from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import dist_direct
from tests.peers import skopeo
from tests.peers.registry import cncf_registry
from tests.peers.tls import client_certificate, self_signed
from tests.peers.token_server import PASSWORD, USER, TokenServer

IMAGE = images.image(700, layers=2)
MANY = images.image(701, layers=16)
# The registry adds 60 s to the life of a token.
LEEWAY_S = 60


@pytest.mark.parametrize("demanding", [False, True], ids=["server", "client too"])
def test_fetch_and_push_over_tls(tmp_path: Path, *, demanding: bool) -> None:
    self_signed(tmp_path)
    client = client_certificate(tmp_path) if demanding else None
    content, store, hosts = tmp_path / "registry", tmp_path / "store", tmp_path / "hosts.yaml"
    with cncf_registry(content) as plain:
        images.push(plain.host, "app", IMAGE, "v1")
    with cncf_registry(content, tls=tmp_path, clients=client and client.with_suffix(".crt")) as secure:
        hosts.write_text(f"registries:\n  {secure.host}:\n    tls: enabled\n")
        shown = tmp_path / "shown.yaml"
        shown.write_text(hosts.read_text() + (f"    certFile: {client}\n" if client else ""))
        source, target = f"{secure.host}/app:v1", f"{secure.host}/pushed:v2"
        trusted = ("--ca-file", tmp_path / "cert.pem", "--hosts", shown)

        fetched = dist_direct("--store", store, "fetch", *trusted, source)
        pushed = dist_direct("--store", store, "push", *trusted, source, target)
        unknown = dist_direct("--store", store, "fetch", "--retries", "0", "--hosts", shown, source)
        bare = dist_direct(
            "--store", store, "fetch", "--retries", "0", "--ca-file", tmp_path / "cert.pem", "--hosts", hosts, source
        )

        statuses = {one.status for one in secure.requests(at_least=10)}
    assert (fetched.code, pushed.code) == (0, 0), fetched.err + pushed.err
    assert statuses <= {200, 201, 202, 404}
    assert {str(info.digest) for info in open_store(str(store)).walk()} == set(IMAGE.descriptors)
    assert (unknown.code, "certificate of 127.0.0.1 is not trusted" in unknown.err.splitlines()[-1]) == (1, True), unknown.err
    assert bare.code == (1 if demanding else 0), bare.err
    assert not demanding or bare.err.splitlines()[-1].startswith(f"dist: {source}: ")
    with cncf_registry(content) as plain:
        assert skopeo.raw(f"docker://{plain.host}/pushed:v2") == IMAGE.manifests[-1].raw


def test_a_token_that_expires_during_a_run_is_replaced(tmp_path: Path) -> None:
    """The requests, two per second and one after the other, take longer than the life of a token, on any machine."""
    with cncf_registry(tmp_path / "registry") as plain:
        images.push(plain.host, "team/app", MANY, "v1")
    with TokenServer(tmp_path) as tokens, cncf_registry(tmp_path / "registry", tokens=tokens) as guarded:
        tokens.signed_s = 6 - LEEWAY_S
        hosts = tmp_path / "hosts.yaml"
        hosts.write_text(f"registries:\n  {guarded.host}:\n    reqPerSec: 2\n")
        arguments = ("--hosts", hosts, "--concurrency", "1", "--retries", "0", f"{guarded.host}/team/app:v1")

        result = dist_direct("--store", tmp_path / "store", "fetch", *arguments, DIST_USERNAME=USER, DIST_PASSWORD=PASSWORD)

        statuses = [one.status for one in guarded.requests(at_least=len(MANY.descriptors) + 2)]
    assert result.code == 0, result.err
    assert {str(info.digest) for info in open_store(str(tmp_path / "store")).walk()} == set(MANY.descriptors)
    assert statuses.count(200) == len(MANY.descriptors) + 1
    assert statuses[0] == 401
    assert len(tokens.requests) == statuses.count(401) >= 2
