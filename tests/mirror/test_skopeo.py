"""Files of `skopeo sync --src yaml`: the converted configuration selects the images that skopeo copies."""

import json
from pathlib import Path

import pytest

from prefect_dist.mirror.config import Mirror, load
from prefect_dist.mirror.skopeo import convert_skopeo
from prefect_dist.mirror.yamlfile import read
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


def convert(path: Path, *to: str) -> Mirror:
    """Return the configuration that a skopeo file is converted to."""
    converted = path.with_name("mirror.yaml")
    converted.write_text(convert_skopeo(read(str(path)), to=to))
    return load(str(converted))


def targets(mirror: Mirror, number: int, source: str) -> list[str]:
    return [str(target) for target in mirror.entries[number].list_targets(Reference.parse(source))]


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setenv("PASSWORD_REGISTRY_EXAMPLE_COM", "this is a secret")
    certs = tmp_path / "certs"
    certs.mkdir()
    self_signed(tmp_path)
    (tmp_path / "cert.pem").rename(certs / "ca.crt")
    both = client_certificate(tmp_path)
    key, _, certificate = both.read_text().partition("-----BEGIN CERTIFICATE")
    (certs / "client.key").write_text(key)
    (certs / "client.cert").write_text(f"-----BEGIN CERTIFICATE{certificate}")
    return convert(write(tmp_path, FULL), "mirror.example/all/", "other.example/{{.Ref.Registry}}/{{.Ref.Repository}}")


def test_entries_have_skopeos_order(full: Mirror) -> None:
    assert [(entry.type, entry.source) for entry in full.entries] == [
        ("repository", "registry.example.com/busybox"),
        ("repository", "registry.example.com/alpine"),
        ("image", "registry.example.com/redis:1.0"),
        ("image", "registry.example.com/redis:2.0"),
        ("image", f"registry.example.com/redis@{DIGEST}"),
        ("repository", "registry.example.com/team/nginx"),
        ("repository", "registry.example.com/team/any"),
        ("repository", "registry.example.com/alpine"),
        ("image", "docker.io/library/redis:latest"),
        ("image", "quay.io/coreos/etcd:latest"),
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
    assert [Path(file or "").name for file in (tls.ca_file, tls.cert_file, tls.key_file)] == [
        "ca.crt",
        "client.cert",
        "client.key",
    ]
    assert tls.verify
    assert full.hosts.named["quay.io"] == HostSettings(scheme="https", tls=Tls(verify=False))
    assert full.credentials == {"registry.example.com": Credentials("john", "this is a secret")}
    assert "this is a secret" not in Path(full.path).read_text()


def test_further_options_have_their_defaults(full: Mirror, tmp_path: Path) -> None:
    assert (full.name, full.lock) == ("mirror", str(tmp_path / "mirror.lock.json"))
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
        mirror = convert(path, "mirror.example/all")
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
        convert(path, "b.example")
    check_message(caught.value, f"{path}{message}".replace("{folder}", str(tmp_path)), hides=["topsecret"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca.crt": "topsecret"}, "{folder}/certs/ca.crt: expected a certificate in PEM"),
        (
            {"own.cert": "topsecret", "own.key": ""},
            "{folder}/certs/own.cert and {folder}/certs/own.key: expected a certificate and key in PEM",
        ),
        ({"own.cert": "topsecret"}, "{folder}/certs/own.key: No such file or directory"),
        ({"a.crt": "", "b.crt": ""}, "{folder}/certs: expected one file *.crt, got 2; join them into one file"),
    ],
)
def test_an_unusable_certificate_is_rejected(tmp_path: Path, files: dict[str, str], message: str) -> None:
    (tmp_path / "certs").mkdir()
    for name, text in files.items():
        (tmp_path / "certs" / name).write_text(text)
    path = write(tmp_path, "a.example:\n  images: {redis: []}\n  cert-dir: certs\n")
    with pytest.raises(InvalidInput) as caught:
        convert(path, "b.example")
    check_message(
        caught.value, f"{path}:3: a.example.cert-dir: {message}".replace("{folder}", str(tmp_path)), hides=["topsecret"]
    )


@pytest.mark.parametrize("destination", ["https://b.example", "b.example/Team", "b.example/{{.Ref.Nothing}}"])
def test_an_invalid_destination_is_rejected(tmp_path: Path, destination: str) -> None:
    path = write(tmp_path, "a.example: {images: {redis: []}}")
    with pytest.raises(InvalidInput) as caught:
        convert(path, destination)
    check_message(caught.value, f"destination {destination}: ")


TAGS = ["0.0.3", "0.0.4", "0.1.0", "0.2.3", "0.3.0", "1", "1.0.0", "1.1", "1.2.0", "1.2.3", "1.2.9", "1.3.0", "v1.9.9"]
TAGS += ["2.0.0-rc1", "2.0.0", "2.1.0", "3.12.0", "4.0.0", "latest", "1.2.3.4", "1.2.3-alpine"]


def choose(tmp_path: Path, constraint: str) -> list[str]:
    path = write(tmp_path, json.dumps({"a.example": {"images-by-semver": {"app": constraint}}}))
    return convert(path, "b.example").entries[0].tags.choose(TAGS)


@pytest.mark.parametrize(
    ("constraint", "tags"),
    [
        (">= 3.12.0", ["3.12.0", "4.0.0"]),
        (">=3", ["3.12.0", "4.0.0"]),
        ("=1.2.3", ["1.2.3"]),
        ("1.2.3", ["1.2.3"]),
        ("1.2", ["1.2.0", "1.2.3", "1.2.9"]),
        ("=1.2", ["1.2.0", "1.2.3", "1.2.9"]),
        ("1.2.x", ["1.2.0", "1.2.3", "1.2.9"]),
        ("0.x", ["0.0.3", "0.0.4", "0.1.0", "0.2.3", "0.3.0"]),
        ("*", [tag for tag in TAGS if tag not in ("latest", "1.2.3.4", "2.0.0-rc1", "1.2.3-alpine")]),
        (">1.2 <2", ["1.3.0", "v1.9.9"]),
        (">1.2.0, <1.3", ["1.2.3", "1.2.9"]),
        (">1, <3", ["2.0.0", "2.1.0"]),
        ("<=1.2 >1.0.0", ["1.1", "1.2.0", "1.2.3", "1.2.9"]),
        ("=<0.2.3", ["0.0.3", "0.0.4", "0.1.0", "0.2.3"]),
        ("=>4", ["4.0.0"]),
        ("!=1.2.3 ~1.2", ["1.2.0", "1.2.9"]),
        ("~1.2.3", ["1.2.3", "1.2.9"]),
        ("~>1.2.3", ["1.2.3", "1.2.9"]),
        ("~1", ["1", "1.0.0", "1.1", "1.2.0", "1.2.3", "1.2.9", "1.3.0", "v1.9.9"]),
        ("^1.2.3", ["1.2.3", "1.2.9", "1.3.0", "v1.9.9"]),
        ("^0.2.3", ["0.2.3"]),
        ("^0.0.3", ["0.0.3"]),
        ("^0.0", ["0.0.3", "0.0.4"]),
        ("^0", ["0.0.3", "0.0.4", "0.1.0", "0.2.3", "0.3.0"]),
        ("1.2 - 1.3", ["1.2.0", "1.2.3", "1.2.9", "1.3.0"]),
        ("1.2.3 - 2", ["1.2.3", "1.2.9", "1.3.0", "v1.9.9", "2.0.0", "2.1.0"]),
        (">=4 || 0.0.3", ["0.0.3", "4.0.0"]),
        (">=2.0.0-0 <3", ["2.0.0-rc1", "2.0.0", "2.1.0"]),
        ("^1.9.0-0", ["v1.9.9"]),
        (">1.9 <2.1.0-0", ["2.0.0-rc1", "2.0.0"]),
        ("<=1.9 >=1.3-0", ["1.3.0", "v1.9.9"]),
        ("~0.0.0", [tag for tag in TAGS if tag not in ("latest", "1.2.3.4", "2.0.0-rc1", "1.2.3-alpine")]),
        (">=2.0.0-0 <3 || 1.2.3", ["1.2.3", "2.0.0-rc1", "2.0.0", "2.1.0"]),
        (" >= 4 ", ["4.0.0"]),
    ],
)
def test_a_constraint_selects_tags(tmp_path: Path, constraint: str, tags: list[str]) -> None:
    assert choose(tmp_path, constraint) == tags


@pytest.mark.parametrize(
    "constraint", ["", " ", "latest", ">=", "||", ">=1 ||", "1.2.3.4", "!=1.2", ">*", ">=1 and <2", "1 -2", "==1"]
)
def test_an_invalid_constraint_is_rejected(tmp_path: Path, constraint: str) -> None:
    with pytest.raises(InvalidInput, match="constraint"):
        choose(tmp_path, constraint)
