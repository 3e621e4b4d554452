"""Hosts files: each key, and the message of each mistake."""

import shutil
from pathlib import Path

import pytest

from prefect_dist.mirror import hosts_file as config
from prefect_dist.mirror import templates
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes import Hosts, HostSettings, Tls
from tests.peers.tls import self_signed
from tests.remotes.asking import check_message

FULL = """\
registries:
  registry.example:5000:
    hostname: internal.example:5001
    tls: insecure
    caFile: ~/ca.pem
    certFile: CERTIFICATE
    keyFile: tls/key.pem
    mirrors: [mirror.example, "cache:5000"]
    pathPrefix: /cache/hub
    headers:
      X-Api-Key: '{{env "API_KEY"}}'
    reqConcurrent: 4
    reqPerSec: 2.5
    avoid: [head, range, mount, chunked]
    privateHosts: ["MINIO.internal:9000", 10.1.2.3]
  plain.example: {tls: disabled}
"""


def load(tmp_path: Path, text: str) -> Hosts:
    path = tmp_path / "hosts.yaml"
    path.write_text(text)
    return config.hosts(str(path))


def test_each_key_sets_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "topsecret\n")
    directory, home = tmp_path / "tls", tmp_path / "home"
    directory.mkdir()
    home.mkdir()
    self_signed(directory)
    shutil.copy(directory / "cert.pem", home / "ca.pem")
    monkeypatch.setenv("HOME", str(home))
    hosts = load(tmp_path, FULL.replace("CERTIFICATE", str(directory / "cert.pem")))
    assert hosts.settings_for("registry.example:5000") == HostSettings(
        scheme="https",
        hostname="internal.example:5001",
        tls=Tls(
            ca_file=str(home / "ca.pem"),
            cert_file=str(directory / "cert.pem"),
            key_file=str(directory / "key.pem"),
            verify=False,
        ),
        mirrors=("mirror.example", "cache:5000"),
        path_prefix="cache/hub/",
        headers=(("X-Api-Key", "topsecret"),),
        in_flight=4,
        per_second=2.5,
        avoid=frozenset({"head", "range", "mount", "chunked"}),
        private_hosts=frozenset({"minio.internal:9000", "10.1.2.3"}),
    )
    assert hosts.url("plain.example") == "http://plain.example"
    assert "topsecret" not in repr(hosts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("registries: {ghcr.io: {tlss: enabled}}", ":1: registries.ghcr.io.tlss: unknown key"),
        ("hosts: {}", ":1: registries: missing"),
        ("", ":1: registries: missing"),
        ("topsecret", ":1: expected keys and values"),
        ("registries:\n  a: topsecret\n", ":2: registries.a: expected keys and values"),
        ("registries:\n  a:\n    headers: {'X Y': topsecret}\n", ":3: registries.a.headers.X Y: expected the name of a header"),
        ('registries:\n  a:\n    headers: {X: "topsecret\\nmore"}\n', ":3: registries.a.headers.X: expected one line of"),
        ("registries:\n  a:\n    headers: {X: topsecret\u20ac}\n", ":3: registries.a.headers.X: expected one line of"),
        ("- a", ":1: expected"),
        ("registries:\n  ghcr.io:\n    tls: yes\n", ":3: registries.ghcr.io.tls: expected 'enabled', 'insecure' or 'disabled'"),
        ("registries:\n  ghcr.io:\n    reqConcurrent: 0\n", ":3: registries.ghcr.io.reqConcurrent: expected"),
        ("registries:\n  ghcr.io:\n    reqConcurrent: '4'\n", "got '4'"),
        (
            "registries:\n  ghcr.io:\n    mirrors: [ok, 'not a host']\n",
            ":3: registries.ghcr.io.mirrors[1]: expected host[:port]",
        ),
        ("registries:\n  'https://ghcr.io': {}\n", ":2: registries.https://ghcr.io: expected host[:port]"),
        ("registries:\n  ghcr.io:\n    avoid: [sleep]\n", ":3: registries.ghcr.io.avoid[0]: expected 'head'"),
        (
            "registries:\n  ghcr.io:\n    privateHosts: ['https://x']\n",
            ":3: registries.ghcr.io.privateHosts[0]: expected host[:port]",
        ),
        ("registries:\n  ghcr.io:\n    pathPrefix: ../up\n", ":3: registries.ghcr.io.pathPrefix"),
        ("registries:\n  ghcr.io:\n    headers: {X: [topsecret]}\n", ":3: registries.ghcr.io.headers.X: "),
        (
            "registries:\n  ghcr.io:\n    headers: {X: '{{env \"NOT_SET\"}}'}\n",
            "headers.X: environment variable NOT_SET is not set",
        ),
        ("registries:\n  ghcr.io:\n    headers: {X: '{{topsecret}}'}\n", "got another template"),
        ("registries:\n  ghcr.io:\n    headers: {X: '{{file \"/none\"}}'}\n", "/none: No such file"),
    ],
)
def test_a_mistake_has_a_message_with_its_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, text)
    check_message(caught.value, str(tmp_path / "hosts.yaml"), message, hides=["topsecret"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            "caFile: none.pem",
            ":3: registries.a.example.caFile: {}/none.pem: No such file or directory; expected a readable PEM file",
        ),
        ("caFile: .", ":3: registries.a.example.caFile: {}: Is a directory"),
        ("caFile: key.pem", ":3: registries.a.example.caFile: {}/key.pem: expected a certificate in PEM"),
        ("caFile: cert.pem\n    certFile: /none", ":4: registries.a.example.certFile: /none: No such file or directory"),
        ("certFile: cert.pem", ":3: registries.a.example.certFile: {}/cert.pem: expected a certificate and key in PEM"),
        ("certFile: cert.pem\n    keyFile: none.pem", ":4: registries.a.example.keyFile: {}/none.pem: No such file"),
        (
            "certFile: cert.pem\n    keyFile: hosts.yaml",
            ":3: registries.a.example.certFile: {0}/cert.pem and {0}/hosts.yaml: expected a certificate and key in PEM",
        ),
        ("keyFile: key.pem", ":2: registries.a.example.certFile: {}/key.pem: expected a certificate for this key"),
    ],
)
def test_an_unusable_certificate_file_has_a_message_with_the_line_that_names_it(
    tmp_path: Path, files: str, message: str
) -> None:
    self_signed(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, f"registries:\n  a.example:\n    {files}\n")
    check_message(caught.value, f"{tmp_path}/hosts.yaml{message.format(tmp_path)}")


def test_an_unusable_ca_bundle_is_rejected_before_any_request(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.pem: No such file or directory"):
        config.hosts(None, ca_file=str(tmp_path / "none.pem"))


def test_relative_paths_start_at_the_directory_of_the_hosts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    self_signed(tmp_path)
    (tmp_path / "hosts.yaml").write_text("registries: {a.example: {caFile: cert.pem}}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert config.hosts("../hosts.yaml").settings_for("a.example").tls == Tls(ca_file=str(elsewhere / "../cert.pem"))


def test_options_override_the_hosts_file(tmp_path: Path) -> None:
    path, everywhere, one = tmp_path / "hosts.yaml", str(tmp_path / "cert.pem"), tmp_path / "b.pem"
    self_signed(tmp_path)
    shutil.copy(everywhere, one)
    path.write_text("registries: {a.example: {tls: disabled, pathPrefix: x}, b.example: {caFile: b.pem}}")
    hosts = config.hosts(str(path), plain_http=True, ca_file=everywhere, insecure=["a.example", "c.example"])
    assert hosts.settings_for("a.example").tls == Tls(ca_file=everywhere, verify=False)
    assert hosts.settings_for("a.example").path_prefix == "x/"
    assert hosts.settings_for("b.example").tls == Tls(ca_file=str(one))
    assert hosts.settings_for("z.example").tls == Tls(ca_file=everywhere)
    assert [hosts.url(host) for host in ("a.example", "b.example", "c.example")] == [
        "https://a.example",
        "http://b.example",
        "https://c.example",
    ]


def test_insecure_must_be_a_host() -> None:
    with pytest.raises(InvalidInput, match="insecure 'https://a'"):
        config.hosts(None, insecure=["https://a"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ('{{env "A"}}', "alpha"),
        ("{{ env `A` }}", "alpha"),
        ('{{- env "A" -}}', "alpha"),
        ('x{{env "A"}}y{{env "A"}}', "xalphayalpha"),
        ("{ {}", "{ {}"),
    ],
)
def test_a_secret_may_be_a_template(text: str, value: str) -> None:
    assert templates.resolve_secret(text, at="here", environ={"A": "alpha"}) == value


def test_the_value_of_a_variable_is_not_a_template() -> None:
    assert templates.resolve_secret('{{env "A"}}', at="here", environ={"A": '{{env "B"}}'}) == '{{env "B"}}'


def test_a_secret_from_a_file_has_no_trailing_line_break(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    assert templates.resolve_secret(f'{{{{file "{tmp_path}/secret"}}}}', at="here") == "s3cret"
