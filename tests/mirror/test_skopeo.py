"""Files of `skopeo sync --src yaml`: a mirror copies the images that skopeo copies."""

from pathlib import Path

import pytest

from prefect_dist.mirror.config import Mirror, load
from prefect_dist.mirror.skopeo import choose_parser
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes import Credentials, HostSettings, Tls
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.peers import skopeo
from tests.peers.tls import client_certificate, self_signed
from tests.remotes.asking import check_message

DIGEST = f"sha256:{'0' * 64}"
FULL = f"""\
registry.example.com:
    images:
        busybox: []
        alpine:
        redis:
            - 1.0
            - "2.0"
            - "{DIGEST}"
    images-by-tag-regex:
        team/nginx: ^1\\.13\\.[12]-alpine
        team/any: (?i)RC
    images-by-semver:
        alpine: ">= 3.12.0"
    credentials:
        username: john
        password: this is a secret
    tls-verify: true
    cert-dir: certs
docker.io:
    images:
        redis: [latest]
quay.io:
    tls-verify: false
    images:
        coreos/etcd:
            - latest
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sync.yml"
    path.write_text(text)
    return path


def targets(mirror: Mirror, number: int, source: str) -> list[str]:
    return [str(target) for target in mirror.entries[number].list_targets(Reference.parse(source))]


@pytest.fixture
def full(tmp_path: Path) -> Mirror:
    certs = tmp_path / "certs"
    certs.mkdir()
    self_signed(tmp_path)
    (tmp_path / "cert.pem").rename(certs / "ca.crt")
    both = client_certificate(tmp_path)
    key, _, certificate = both.read_text().partition("-----BEGIN CERTIFICATE")
    (certs / "client.key").write_text(key)
    (certs / "client.cert").write_text(f"-----BEGIN CERTIFICATE{certificate}")
    return load(
        str(write(tmp_path, FULL)),
        choose_parser("skopeo", ["mirror.example/all/", "other.example/{{.Ref.Registry}}/{{.Ref.Repository}}"]),
    )


def test_entries_have_skopeos_order(full: Mirror) -> None:
    assert [(entry.type, entry.source, entry.at.partition(".yml:")[2]) for entry in full.entries] == [
        ("repository", "registry.example.com/busybox", "3: registry.example.com.images.busybox"),
        ("repository", "registry.example.com/alpine", "4: registry.example.com.images.alpine"),
        ("image", "registry.example.com/redis:1.0", "6: registry.example.com.images.redis[0]"),
        ("image", "registry.example.com/redis:2.0", "7: registry.example.com.images.redis[1]"),
        ("image", f"registry.example.com/redis@{DIGEST}", "8: registry.example.com.images.redis[2]"),
        ("repository", "registry.example.com/team/nginx", "10: registry.example.com.images-by-tag-regex.team/nginx"),
        ("repository", "registry.example.com/team/any", "11: registry.example.com.images-by-tag-regex.team/any"),
        ("repository", "registry.example.com/alpine", "13: registry.example.com.images-by-semver.alpine"),
        ("image", "docker.io/library/redis:latest", "21: docker.io.images.redis[0]"),
        ("image", "quay.io/coreos/etcd:latest", "26: quay.io.images.coreos/etcd[0]"),
    ]


def test_entries_select_the_tags_of_the_file(full: Mirror) -> None:
    tags = ["1.13.1-alpine-perl", "1.13.3-alpine", "x1.13.1-alpine", "v1-rc2", "3.11.9", "3.12.0", "4.0.0-rc1"]
    assert [entry.tags.choose(tags) for entry in full.entries if entry.type == "repository"] == [
        tags,
        tags,
        ["1.13.1-alpine-perl"],
        ["v1-rc2", "4.0.0-rc1"],
        ["3.12.0"],
    ]


def test_an_image_has_its_last_component_or_the_template_as_its_name(full: Mirror) -> None:
    assert targets(full, 4, f"registry.example.com/redis@{DIGEST}") == [
        f"mirror.example/all/redis@{DIGEST}",
        f"other.example/registry.example.com/redis@{DIGEST}",
    ]
    assert targets(full, 5, "registry.example.com/team/nginx:1") == [
        "mirror.example/all/nginx:1",
        "other.example/registry.example.com/team/nginx:1",
    ]
    assert targets(full, 8, "docker.io/library/redis:latest") == [
        "mirror.example/all/redis:latest",
        "other.example/docker.io/library/redis:latest",
    ]


def test_registries_have_settings_and_credentials(full: Mirror) -> None:
    tls = full.hosts.named["registry.example.com"].tls
    assert tls.ca_pem is not None
    assert tls.cert_pem is not None
    assert tls.verify
    assert full.hosts.named["quay.io"] == HostSettings(tls=Tls(verify=False))
    assert full.credentials == {"registry.example.com": Credentials("john", "this is a secret")}
    assert full.credentials["registry.example.com"].origin.place.endswith(": registry.example.com.credentials")
    assert "this is a secret" not in repr(full)


def test_further_options_have_their_defaults(full: Mirror, tmp_path: Path) -> None:
    assert (full.name, full.lock) == ("sync", str(tmp_path / "sync.lock.json"))
    assert (full.store, full.seed, full.warnings, full.concurrency) == (None, (), (), 8)
    assert not any(one.platforms or one.referrers or one.digest_tags or one.backup or one.prune for one in full.entries)


def test_a_mirror_selects_the_images_that_skopeo_copies(tmp_path: Path) -> None:
    root = images.image(seed=1).manifests[-1]
    tags = {
        "team/app": ["1.0", "1.1", "latest", "nightly-7"],
        "library/one": ["v1.2.3", "v1.2.4-alpine", "xv1.2.4-alpine", "v12"],
        "flat": ["a", "b"],
    }
    with FakeRegistry() as registry:
        for repository, names in tags.items():
            for name in names:
                registry.put_manifest(repository, root.raw, root.media_type, tag=name)
        data = {
            "images": {"flat": [], "team/app": ["1.0", "latest"]},
            "images-by-tag-regex": {"library/one": "v1.2", "team/app": "^1|ly"},
        }
        path = write(tmp_path, f'"{registry.host}": {{tls-verify: false, **}}'.replace("**", str(data)[1:-1]))
        mirror = load(str(path), choose_parser("skopeo", ["mirror.example/all"]))
        copied = skopeo.planned(path, "mirror.example/all")
    mirrored = set()
    for entry in mirror.entries:
        repository = entry.source.partition("/")[2]
        chosen = (
            [f"{entry.source}:{tag}" for tag in entry.tags.choose(tags[repository])]
            if entry.type == "repository"
            else [entry.source]
        )
        mirrored |= {(source, str(target)) for source in chosen for target in entry.list_targets(Reference.parse(source))}
    assert len(copied) == 2 + 2 + 3 + 3 - 1  # two entries select team/app:1.0
    assert mirrored == copied


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", ":1: expected keys and values"),
        ("a.example: [x]", ":1: a.example: expected keys and values"),
        ("a.example: {image: {}}", ":1: a.example.image: unknown key; did you mean images"),
        ("a.example:\n  images: [redis]\n", ":2: a.example.images: expected keys and values"),
        ("a.example:\n  images: {redis: latest}\n", ":2: a.example.images.redis: expected a list"),
        (
            "a.example:\n  images: {redis: ['a b']}\n",
            ":2: a.example.images.redis[0]: reference 'a.example/redis:a b': expected printable",
        ),
        (
            "a.example:\n  images: {Redis: []}\n",
            ":2: a.example.images.Redis: reference 'a.example/Redis:latest': bad path 'Redis'",
        ),
        (
            "a.example:\n  images-by-tag-regex: {redis: '('}\n",
            ":2: a.example.images-by-tag-regex.redis: expected a regular expression",
        ),
        (
            "a.example:\n  images-by-semver: {redis: new}\n",
            ":2: a.example.images-by-semver.redis: constraint 'new': expected versions",
        ),
        ("a.example:\n  tls-verify: maybe\n", ":2: a.example.tls-verify: expected a valid boolean, got 'maybe'"),
        ("a.example:\n  credentials: {password: [topsecret]}\n", ":2: a.example.credentials.password: expected text"),
        ("a.example:\n  credentials: topsecret\n", ":2: a.example.credentials: expected keys and values"),
        ("a.example:\n  cert-dir: none\n", ":2: a.example.cert-dir: {folder}/none: expected a directory of certificates"),
    ],
)
def test_each_mistake_has_a_message_with_its_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidInput) as caught:
        load(str(path), choose_parser("skopeo", ["b.example"]))
    check_message(caught.value, f"{path}{message}".replace("{folder}", str(tmp_path)), hides=["topsecret"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca.crt": "topsecret"}, "CA certificates: expected a certificate in PEM"),
        ({"own.cert": "topsecret", "own.key": ""}, "certificate with key: expected a certificate and key in PEM"),
        ({"own.cert": "topsecret"}, "{folder}/certs: No such file or directory"),
    ],
)
def test_an_unusable_certificate_is_rejected(tmp_path: Path, files: dict[str, str], message: str) -> None:
    (tmp_path / "certs").mkdir()
    for name, text in files.items():
        (tmp_path / "certs" / name).write_text(text)
    path = write(tmp_path, "a.example:\n  images: {redis: []}\n  cert-dir: certs\n")
    with pytest.raises(InvalidInput) as caught:
        load(str(path), choose_parser("skopeo", ["b.example"]))
    check_message(
        caught.value, f"{path}:3: a.example.cert-dir: {message}".replace("{folder}", str(tmp_path)), hides=["topsecret"]
    )


def test_a_skopeo_file_requires_a_destination(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="destinations and the format skopeo require each other"):
        load(str(write(tmp_path, FULL)), choose_parser("skopeo", []))


@pytest.mark.parametrize("destination", ["https://b.example", "b.example/Team", "b.example/{{.Ref.Nothing}}"])
def test_an_invalid_destination_is_rejected(tmp_path: Path, destination: str) -> None:
    path = write(tmp_path, "a.example: {images: {redis: []}}")
    with pytest.raises(InvalidInput) as caught:
        load(str(path), choose_parser("skopeo", [destination]))
    check_message(caught.value, f"destination {destination}: ")
