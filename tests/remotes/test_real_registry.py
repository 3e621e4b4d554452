"""Fetching from the CNCF registry, the model of the fake registry."""

from collections.abc import Iterator

import pytest

from prefect_dist.ocispec import Digest, Reference, manifest
from prefect_dist.ocispec.errors import Denied, NotFound
from prefect_dist.remotes import Credentials, Registries
from tests import images
from tests.peers.registry import LOGIN, CncfRegistry, cncf_registry
from tests.remotes.asking import SETTINGS, check_message, read, reference

IMAGE = images.image(seed=1, layers=2, layer_bytes=300_000)
INDEX = images.index([IMAGE, images.image(seed=2, platform="linux/arm64")], nested=True)
DOCKER = images.image(seed=3, docker=True)


@pytest.fixture(scope="module")
def cncf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path_factory.mktemp("cncf")) as cncf:
        for tag, image in {"image": IMAGE, "index": INDEX, "docker": DOCKER}.items():
            images.push(cncf.host, "team/app", image, tag)
        yield cncf


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path_factory.mktemp("guarded"), basic_auth=True) as guarded:
        images.push(guarded.host, "team/app", IMAGE, "image", login=LOGIN)
        yield guarded


def fetch_all(registries: Registries, wanted: Reference) -> dict[str, bytes]:
    """All content below a reference, by digest."""
    root = registries.resolve(wanted)
    got, left = {}, [root.descriptor]
    while left:
        one = left.pop()
        got[str(one.digest)] = content = read(root.fetcher, one)
        left += manifest.children(content, one.media_type, at=str(one))
    return got


@pytest.mark.parametrize(("tag", "image"), [("image", IMAGE), ("index", INDEX), ("docker", DOCKER)])
def test_a_whole_image_is_fetched(registries: Registries, cncf: CncfRegistry, tag: str, image: images.BuiltImage) -> None:
    before = len(cncf.requests())
    got = fetch_all(registries, reference(cncf.host, f":{tag}"))
    assert got == {**image.blobs, **{one.digest: one.raw for one in image.manifests}}
    requests = cncf.requests(at_least=before + 1 + len(got))[before:]
    assert [one.method for one in requests] == ["HEAD"] + ["GET"] * len(got)
    assert {one.status for one in requests} == {200}


def test_a_pinned_digest_is_resolved_and_read_from_an_offset(registries: Registries, cncf: CncfRegistry) -> None:
    digest, content = list(IMAGE.blobs.items())[1]
    # without the hint, this registry answers 500: it reads any blob as a manifest, and fails
    found = registries.resolve(reference(cncf.host, f"@{digest}"), media_type=images.OCI_LAYER)
    assert (str(found.descriptor.digest), found.descriptor.size) == (digest, len(content))
    before = len(cncf.requests())
    assert read(found.fetcher, found.descriptor, offset=1000) == content[1000:]
    *_, ranged = cncf.requests(at_least=before + 1)
    assert (ranged.status, ranged.sent) == (206, len(content) - 1000)


@pytest.mark.parametrize("named", [":missing", f"@{Digest.of(b'missing')}"])
def test_missing_content_is_not_found(registries: Registries, cncf: CncfRegistry, named: str) -> None:
    with pytest.raises(NotFound) as caught:
        registries.resolve(reference(cncf.host, named))
    check_message(caught.value, str(reference(cncf.host, named)))


def test_content_is_fetched_with_a_password(guarded: CncfRegistry) -> None:
    with Registries(SETTINGS, credentials=lambda *_: Credentials(*LOGIN)) as registries:
        assert set(IMAGE.blobs) < set(fetch_all(registries, reference(guarded.host, ":image")))


@pytest.mark.parametrize("password", [None, "a-wrong-password"])
def test_a_fetch_without_the_password_is_denied(guarded: CncfRegistry, password: str | None) -> None:
    before = len(guarded.requests())
    credentials = None if password is None else Credentials(LOGIN[0], password)
    with Registries(SETTINGS, credentials=lambda *_: credentials) as registries, pytest.raises(Denied) as caught:
        registries.resolve(reference(guarded.host, ":image"))
    message = (
        str(reference(guarded.host, ":image")) if password is None else f"{guarded.host}: the password of user '{LOGIN[0]}'"
    )
    check_message(caught.value, message, hides=["a-wrong-password"])
    expected = 1 if password is None else 2
    assert [one.status for one in guarded.requests(at_least=before + expected)[before:]] == [401] * expected
