"""TLS per host: trusted CAs and client certificates, neither of which applies to another host."""

import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_dist.ocispec.errors import Denied, InvalidInput, Unavailable
from prefect_dist.remotes import Hosts, HostSettings, Registries, RegistrySettings, Tls
from tests import images
from tests.fakes.faults import Fault, Redirect
from tests.fakes.registry import FakeRegistry
from tests.peers.tls import client_certificate, self_signed
from tests.remotes.asking import BLOB, REPOSITORY, anonymous, check_message, descriptor, fetcher, read, reference

IMAGE = images.image(seed=1)


def registries(hosts: Hosts) -> Registries:
    return Registries(RegistrySettings(hosts=hosts, connect_timeout_s=10, read_timeout_s=10), credentials=anonymous)


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    return str(tmp_path / "cert.pem")


@pytest.fixture
def server(tmp_path: Path) -> ssl.SSLContext:
    return self_signed(tmp_path)


@pytest.fixture
def secure(server: ssl.SSLContext) -> Iterator[FakeRegistry]:
    with FakeRegistry(tls=server) as registry:
        put_root(registry)
        registry.put_blob(REPOSITORY, BLOB)
        yield registry


def put_root(registry: FakeRegistry, repository: str = REPOSITORY) -> None:
    root = IMAGE.manifests[-1]
    registry.put_manifest(repository, root.raw, root.media_type, tag="v1")


def https(host: str, tls: Tls | None = None, *, ca_file: str | None = None) -> Hosts:
    return Hosts(named={host: HostSettings(scheme="https", tls=tls or Tls())}, ca_file=ca_file)


def test_a_ca_file_applies_to_all_hosts(secure: FakeRegistry, ca_file: str) -> None:
    with registries(https(secure.host, ca_file=ca_file)) as found:
        assert read(fetcher(found, secure), descriptor(BLOB)) == BLOB


def test_a_ca_file_applies_to_one_host(secure: FakeRegistry, ca_file: str) -> None:
    with registries(https(secure.host, Tls(ca_file=ca_file))) as found:
        assert str(found.resolve(reference(secure)).descriptor.digest) == IMAGE.root.digest


def test_only_https_reads_the_ca_certificates_of_the_system(
    secure: FakeRegistry, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them costs 30 ms of CPU time."""
    read = []
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: read.append("CAs"))
    put_root(registry)

    with registries(https(secure.host)) as found:
        assert str(found.resolve(reference(registry)).descriptor.digest) == IMAGE.root.digest
        assert read == []
        with pytest.raises(Denied):
            found.resolve(reference(secure))
        assert read == ["CAs"]


def test_an_unknown_ca_is_not_trusted(secure: FakeRegistry) -> None:
    with registries(https(secure.host)) as found, pytest.raises(Denied) as caught:
        found.resolve(reference(secure))
    check_message(caught.value, secure.host, "not trusted")
    assert not secure.requests


def test_verification_is_skipped_only_for_the_configured_host(secure: FakeRegistry, server: ssl.SSLContext) -> None:
    with FakeRegistry(tls=server) as elsewhere:
        secure.inject(Fault(path=".*/blobs/.*", nth=None, action=Redirect(f"https://{elsewhere.host}/blob")))
        with registries(https(secure.host, Tls(verify=False))) as found:
            assert str(found.resolve(reference(secure)).descriptor.digest) == IMAGE.root.digest
            with pytest.raises(Denied) as caught:
                read(fetcher(found, secure), descriptor(BLOB))
        check_message(caught.value, "not trusted", elsewhere.host)
        assert not elsewhere.requests


def test_headers_are_sent_only_to_their_host(registry: FakeRegistry, other: FakeRegistry) -> None:
    registry.put_blob(REPOSITORY, BLOB)
    other.put_blob(REPOSITORY, BLOB)
    path = f"/v2/{REPOSITORY}/blobs/{descriptor(BLOB).digest}"
    registry.inject(Fault(path=path, nth=None, action=Redirect(f"http://{other.host}{path}")))
    hosts = Hosts(named={registry.host: HostSettings(headers=(("X-Api-Key", "topsecret"),))})
    with registries(hosts) as found:
        assert read(fetcher(found, registry), descriptor(BLOB)) == BLOB
    assert "topsecret" not in repr(hosts)
    assert [one.headers.get("x-api-key") for one in registry.requests] == ["topsecret"]
    assert [one.headers.get("x-api-key") for one in other.requests] == [None]


def test_a_path_prefix_comes_before_the_repository(registry: FakeRegistry) -> None:
    put_root(registry, f"cache/{REPOSITORY}")
    with registries(Hosts(named={registry.host: HostSettings(path_prefix="cache/")})) as found:
        assert str(found.resolve(reference(registry)).descriptor.digest) == IMAGE.root.digest


# Client certificates, with a server that demands one; the real registry does in tests/cli/test_registries.py.


@pytest.fixture
def client_pem(tmp_path: Path) -> Path:
    return client_certificate(tmp_path)


@pytest.fixture
def demanding(server: ssl.SSLContext, client_pem: Path) -> Iterator[FakeRegistry]:
    server.load_verify_locations(client_pem.with_suffix(".crt"))
    server.verify_mode = ssl.CERT_REQUIRED
    with FakeRegistry(tls=server) as registry:
        put_root(registry)
        yield registry


def test_a_client_certificate_is_sent(demanding: FakeRegistry, client_pem: Path, ca_file: str) -> None:
    with registries(https(demanding.host, Tls(ca_file=ca_file, cert_file=str(client_pem)))) as found:
        assert str(found.resolve(reference(demanding)).descriptor.digest) == IMAGE.root.digest


def test_a_missing_client_certificate_is_reported(demanding: FakeRegistry, ca_file: str) -> None:
    with registries(https(demanding.host, ca_file=ca_file)) as found, pytest.raises((Denied, Unavailable)) as caught:
        found.resolve(reference(demanding))
    check_message(caught.value, demanding.host)  # and why, if that was heard before the connection ended
    assert not demanding.requests


@pytest.mark.parametrize("named", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_unusable_files_are_named(tmp_path: Path, client_pem: Path, named: str, content: str | None) -> None:
    path = tmp_path / "bad.pem"
    if content is not None:
        path.write_text(content)
    tls = replace(Tls(cert_file=str(client_pem)) if named == "key_file" else Tls(), **{named: str(path)})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput) as caught:
        tls.context()
    check_message(caught.value, str(path), "PEM")


def test_an_encrypted_key_causes_no_prompt(tmp_path: Path) -> None:
    path = tmp_path / "locked.pem"
    make = "openssl req -x509 -newkey rsa:2048 -passout pass:x -days 2 -subj /CN=client"
    subprocess.run([*make.split(), "-keyout", str(path), "-out", str(tmp_path / "l.crt")], check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "l.crt").read_text())
    with pytest.raises(InvalidInput, match="encrypted"):
        Tls(cert_file=str(path)).context()


def test_certificates_may_be_given_as_pem(demanding: FakeRegistry, client_pem: Path, ca_file: str) -> None:
    tls = Tls(ca_pem=Path(ca_file).read_text(), cert_pem=client_pem.read_text())
    with registries(https(demanding.host, tls)) as found:
        assert str(found.resolve(reference(demanding)).descriptor.digest) == IMAGE.root.digest
    assert "PRIVATE KEY" not in repr(tls)
    assert HostSettings(tls=tls).without_secrets().tls.cert_pem is None


@pytest.mark.parametrize(
    ("tls", "message"),
    [
        (Tls(ca_pem="topsecret"), "CA certificates: expected a certificate in PEM"),
        (Tls(cert_pem="topsecret"), "certificate with key: expected a certificate and key in PEM"),
    ],
)
def test_invalid_pem_is_not_shown(tls: Tls, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        tls.context()
    check_message(caught.value, message, hides=["topsecret"])
