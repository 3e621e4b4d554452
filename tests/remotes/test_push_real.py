"""Pushing to the CNCF registry; skopeo reads the image back."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import Denied, Unsupported
from prefect_dist.remotes import Credentials, Hosts, HostSettings, Registries, Tls
from prefect_dist.remotes.pusher import Pusher
from prefect_dist.remotes.sizes import RegistrySizes
from tests import images
from tests.peers import skopeo
from tests.peers.nginx import tls_proxy
from tests.peers.registry import LOGIN, CncfRegistry, cncf_registry
from tests.peers.tls import self_signed
from tests.remotes.asking import BLOB, SETTINGS, anonymous, check_message, descriptor, read, reference
from tests.remotes.pushing import Reader, pusher

IMAGE = images.image(seed=1, layers=2, layer_bytes=300_000)
INDEX = images.index([IMAGE, images.image(seed=2, platform="linux/arm64")])
DOCKER = images.image(seed=3, docker=True)
ARTIFACT = images.artifact(4, subject=IMAGE)
IMAGES = {"image": IMAGE, "index": INDEX, "docker": DOCKER, "artifact": ARTIFACT}
WANTED = descriptor(BLOB)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def cncf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path_factory.mktemp("cncf-push")) as cncf:
        yield cncf


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path_factory.mktemp("guarded-push"), basic_auth=True) as guarded:
        yield guarded


def push(target: Pusher, image: images.BuiltImage, tag: str) -> None:
    """Push missing content, children before parents, the tag last, as a caller of the pusher does."""
    for content in image.blobs.values():
        wanted = descriptor(content)
        if not target.has(wanted):
            target.upload(wanted, Reader(content))
    for one in image.manifests:
        is_root = one.digest == image.root.digest
        target.put(one.raw, descriptor(one.raw, one.media_type), tag=tag if is_root else None)


@pytest.mark.parametrize("chunk_bytes", [100_000, 64 * MIB])
@pytest.mark.parametrize("tag", IMAGES)
def test_a_pushed_image_is_read_back_by_skopeo(
    registries: Registries, cncf: CncfRegistry, tmp_path: Path, tag: str, chunk_bytes: int
) -> None:
    image = IMAGES[tag]
    named = Reference.parse(f"{cncf.host}/team/{tag}-{chunk_bytes}:{tag}")
    target = Pusher(registries._repository(named.host, named), RegistrySizes(chunk_bytes=chunk_bytes))
    push(target, image, tag)
    skopeo.copy(f"docker://{named}", f"dir:{tmp_path}/copy")
    copied = {path.read_bytes() for path in (tmp_path / "copy").iterdir() if path.name != "version"}
    assert copied == {*image.blobs.values(), *(one.raw for one in image.manifests)}


@pytest.mark.parametrize("says_https", [True, False])
def test_a_tls_proxy_has_to_send_x_forwarded_proto(tmp_path: Path, *, says_https: bool) -> None:
    self_signed(tmp_path)
    with (
        cncf_registry(tmp_path / "registry", basic_auth=True) as behind,
        tls_proxy(tmp_path, behind.host, says_https=says_https) as host,
    ):
        hosts = Hosts(named={host: HostSettings(scheme="https", tls=Tls(ca_file=str(tmp_path / "cert.pem")))})
        settings = replace(SETTINGS, hosts=hosts)
        content = b"behind a proxy" + str(says_https).encode()
        with Registries(settings, credentials=lambda *_: Credentials(*LOGIN)) as registries:
            target, wanted = pusher(registries, host), descriptor(content)
            if says_https:
                target.upload(wanted, Reader(content))
                assert read(registries.open_source(reference(host)), wanted) == content
                return
            with pytest.raises(Unsupported) as caught:
                target.upload(wanted, Reader(content))
    check_message(caught.value, str(wanted.digest), f"the registry at https://{host} refers to itself by http in Location")
    check_message(caught.value, "let the proxy in front of it set X-Forwarded-Proto to https", "http.host", hides=[LOGIN[1]])
    assert "credentials" not in str(caught.value)


def test_a_second_push_uploads_nothing(registries: Registries, cncf: CncfRegistry) -> None:
    target = pusher(registries, cncf.host)
    push(target, IMAGE, "twice")
    before = len(cncf.requests())
    push(target, IMAGE, "twice")
    requests = cncf.requests(at_least=before + 4)[before:]
    assert [one.method for one in requests] == ["HEAD"] * len(IMAGE.blobs) + ["PUT"]


def test_a_blob_is_mounted_at_the_cncf_registry(registries: Registries, cncf: CncfRegistry) -> None:
    pusher(registries, cncf.host).upload(WANTED, Reader(BLOB))
    named = Reference.parse(f"{cncf.host}/mounted/here")
    target = registries.open_target(named)
    before = len(cncf.requests())
    assert target.mount(WANTED, source="team/app")
    assert read(registries.open_source(named), WANTED) == BLOB
    elsewhere = Reference.parse(f"{cncf.host}/mounted/not")
    refused = registries.open_target(elsewhere)
    assert not refused.mount(WANTED, source="no/such")
    refused.upload(WANTED, Reader(BLOB))
    requests = cncf.requests(at_least=before + 4)[before:]
    assert [(one.method, one.status) for one in requests] == [("POST", 201), ("GET", 200), ("POST", 202), ("PUT", 201)]


def test_an_interrupted_chunk_is_resumed_at_the_cncf_registry(registries: Registries, cncf: CncfRegistry) -> None:
    # This registry cancels an upload with an interrupted chunk (404 for its offset), so the blob is sent again, once.
    content = BLOB[::-1]
    wanted = descriptor(content)
    breaks = iter([False, True, False])

    def fail_once(offset: int) -> Iterator[bytes]:
        if next(breaks, False):
            yield content[offset : offset + 10_000]
            raise ConnectionResetError("the line broke")
        yield content[offset:]

    before = len(cncf.requests())
    pusher(registries, cncf.host, chunk_bytes=100_000).upload(wanted, fail_once)
    assert read(registries.open_source(reference(cncf.host, "")), wanted) == content
    methods = [one.method for one in cncf.requests(at_least=before + 5)[before:]]
    assert methods.count("POST") == 2
    assert "GET" in methods


def test_an_image_is_pushed_with_a_password(guarded: CncfRegistry) -> None:
    with Registries(SETTINGS, credentials=lambda *_: Credentials(*LOGIN)) as registries:
        push(pusher(registries, guarded.host, chunk_bytes=100_000), IMAGE, "image")
        requests = guarded.requests(at_least=10)
        assert [one.status for one in requests].count(401) == 1


def test_a_push_without_the_password_is_denied(guarded: CncfRegistry) -> None:
    with Registries(SETTINGS, credentials=anonymous) as registries, pytest.raises(Denied) as caught:
        pusher(registries, guarded.host).upload(WANTED, Reader(BLOB))
    check_message(caught.value, guarded.host, str(WANTED.digest), "log in")


@pytest.mark.parametrize("chunk_bytes", [64 * MIB, 1024 * MIB], ids=["chunks", "at once"])
def test_memory_does_not_grow_with_a_blob(registries: Registries, cncf: CncfRegistry, chunk_bytes: int) -> None:
    pieces, piece = 200, bytes(range(256)) * (MIB // 256)
    hasher = sha256()
    for number in range(pieces):
        hasher.update(number.to_bytes(4, "big") + piece[4:])
    wanted = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(f"sha256:{hasher.hexdigest()}"), size=pieces * MIB)

    def content(offset: int) -> Iterator[bytes]:
        for number in range(offset // MIB, pieces):
            yield number.to_bytes(4, "big") + piece[4:]

    target = pusher(registries, cncf.host, chunk_bytes=chunk_bytes)
    tracemalloc.start()
    try:
        target.upload(wanted, content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert target.has(wanted)
    assert peak < 16 * MIB
