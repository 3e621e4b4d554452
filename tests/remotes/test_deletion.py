"""Deleting tags and manifests: what goes with what, where that cannot be done, and with which tokens."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput, Unavailable, Unsupported
from prefect_dist.remotes import Credentials, Registries
from tests import images
from tests.fakes.access import Bearer
from tests.fakes.faults import Answer, Fault, Refuse
from tests.fakes.registry import FakeRegistry
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.peers.token_server import PASSWORD, USER, TokenServer
from tests.remotes.asking import REPOSITORY, SETTINGS, anonymous, asked, check_told, fetcher, user
from tests.remotes.pushing import pusher

IMAGE, OTHER = images.image(seed=1), images.image(seed=2)
DIGEST = Digest.parse(IMAGE.root.digest)
PATH = f"/v2/{REPOSITORY}/manifests"
SCOPE = f"repository:{REPOSITORY}:delete,pull"


def fill(registry: FakeRegistry) -> None:
    """Two tags of one image, and one of another."""
    for image, tag in ((IMAGE, "v1"), (IMAGE, "latest"), (OTHER, "v2")):
        images.load(registry, REPOSITORY, image, tag)


def tags(registries: Registries, host: FakeRegistry | str) -> list[str]:
    return sorted(fetcher(registries, host).tags())


def test_a_tag_goes_alone(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    assert pusher(registries, registry).delete_tag("v1")
    assert asked(registry) == [f"DELETE {PATH}/v1"]
    assert registry.manifest(REPOSITORY, str(DIGEST)) is not None
    assert tags(registries, registry) == ["latest", "v2"]


def test_a_manifest_takes_its_tags_along(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    pusher(registries, registry).delete(DIGEST)
    assert asked(registry) == [f"DELETE {PATH}/{DIGEST}"]
    assert registry.manifest(REPOSITORY, str(DIGEST)) is None
    assert tags(registries, registry) == ["v2"]
    assert all(registry.blob(REPOSITORY, digest) is not None for digest in IMAGE.blobs)


def test_what_is_not_there_is_removed_already(registries: Registries, registry: FakeRegistry) -> None:
    target = pusher(registries, registry)
    assert target.delete_tag("v1")
    target.delete(DIGEST)
    assert [(one.method, one.status) for one in registry.requests] == [("DELETE", 404), ("GET", 404), ("DELETE", 404)]


def test_a_registry_that_does_not_find_a_tag_which_exists_cannot_delete_tags(
    registries: Registries, registry: FakeRegistry
) -> None:
    fill(registry)
    registry.inject(Fault(method="DELETE", action=Refuse(404)))
    assert not pusher(registries, registry).delete_tag("v1")
    assert tags(registries, registry) == ["latest", "v1", "v2"]


@pytest.mark.parametrize("tag", ["", "a b", "../v1", "a/b", f"sha256:{'0' * 64}", "x" * 129])
def test_what_is_no_tag(registries: Registries, registry: FakeRegistry, tag: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        pusher(registries, registry).delete_tag(tag)
    check_told(caught.value, f"bad tag {tag!r}")
    assert registry.requests == []


# Where it cannot be done.


@pytest.mark.parametrize("status", [400, 405])
def test_a_registry_that_removes_no_tags(registries: Registries, registry: FakeRegistry, status: int) -> None:
    registry.inject(Fault(method="DELETE", action=Answer(status)))
    assert not pusher(registries, registry).delete_tag("v1")
    assert asked(registry) == [f"DELETE {PATH}/v1"]


@pytest.mark.parametrize("status", [400, 405])
def test_a_registry_that_removes_nothing(registries: Registries, registry: FakeRegistry, status: int) -> None:
    registry.inject(Fault(method="DELETE", action=Answer(status, (), b'{"errors": [{"code": "UNSUPPORTED"}]}')))
    with pytest.raises(Unsupported) as caught:
        pusher(registries, registry).delete(DIGEST)
    check_told(caught.value, f"{registry.host}/{REPOSITORY}@{DIGEST}", f"{status} UNSUPPORTED", "storage.delete.enabled")


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Denied), (403, Denied), (412, InvalidInput), (429, Unavailable), (500, Unavailable)]
)
def test_a_refusal_of_another_kind_is_told(
    registries: Registries, registry: FakeRegistry, status: int, kind: type[DistError]
) -> None:
    registry.inject(Fault(method="DELETE", nth=None, action=Answer(status)))
    target = pusher(registries, registry)
    attempts: list[Callable[[], object]] = [lambda: target.delete_tag("v1"), lambda: target.delete(DIGEST)]
    for attempt in attempts:
        with pytest.raises(kind) as caught:
            attempt()
        check_told(caught.value, f"{registry.host}/{REPOSITORY}", str(status))


def test_a_redirect_that_makes_a_get_of_it_has_removed_nothing(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    registry.inject(Fault(method="DELETE", action=Answer(302, (("Location", f"{PATH}/v1"),))))
    with pytest.raises(Unsupported, match="turns it into GET"):
        pusher(registries, registry).delete_tag("v1")


# Tokens.


def test_the_scope_of_a_token() -> None:
    with FakeRegistry(auth=Bearer(user="me", password="secret", refuse_anonymous=True)) as guarded:
        fill(guarded)
        with Registries(SETTINGS, credentials=lambda *_: user("me", "secret")) as registries:
            target = pusher(registries, guarded)
            assert target.delete_tag("v1")
            target.delete(DIGEST)
        scopes = [parse_qs(one.query)["scope"] for one in guarded.asked("GET", "/token")]
        assert [one.status for one in guarded.requests].count(401) == 1
    assert scopes == [[SCOPE]]


def test_a_registry_to_which_it_is_a_kind_of_writing(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    with FakeRegistry(auth=Bearer()) as tokens:
        scope = f"repository:{REPOSITORY}:pull,push"
        challenge = f'Bearer realm="http://{tokens.host}/token",service="fake",scope="{scope}"'
        registry.inject(Fault(method="DELETE", action=Answer(401, (("WWW-Authenticate", challenge),))))
        assert pusher(registries, registry).delete_tag("v1")
        (one,) = tokens.requests
        assert parse_qs(one.query)["scope"] == [f"repository:{REPOSITORY}:delete,pull,push"]


def test_who_may_not_is_told_so(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer(withheld=frozenset({REPOSITORY}))) as guarded:
        fill(guarded)
        with pytest.raises(Denied) as caught:
            pusher(registries, guarded).delete(DIGEST)
        check_told(caught.value, str(DIGEST), "log in")
        assert guarded.manifest(REPOSITORY, str(DIGEST)) is not None


# The real registry.


def push(host: str) -> None:
    for image, tag in ((IMAGE, "v1"), (IMAGE, "latest"), (OTHER, "v2")):
        images.push(host, REPOSITORY, image, tag)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """The directory of a registry that has the images."""
    with cncf_registry(tmp_path) as registry:
        push(registry.host)
    return tmp_path


def test_the_cncf_registry_removes_manifests_alone(registries: Registries, filled: Path) -> None:
    with cncf_registry(filled) as registry:
        target = pusher(registries, registry.host)
        assert not target.delete_tag("v1")
        assert not target.delete_tag("never-there")  # so that it does not say what is there
        assert tags(registries, registry.host) == ["latest", "v1", "v2"]
        for _ in range(2):
            target.delete(DIGEST)
        assert tags(registries, registry.host) == ["v2"]
        statuses = [one.status for one in registry.requests(at_least=6) if one.method == "DELETE"]
    assert statuses == [400, 400, 202, 404]


def test_the_cncf_registry_that_removes_nothing(registries: Registries, filled: Path) -> None:
    with cncf_registry(filled, deletes=False) as registry:
        target = pusher(registries, registry.host)
        assert not target.delete_tag("v1")
        with pytest.raises(Unsupported) as caught:
            target.delete(DIGEST)
        check_told(caught.value, str(DIGEST), "405", "storage.delete.enabled")
        assert tags(registries, registry.host) == ["latest", "v1", "v2"]


@pytest.fixture
def guarded(filled: Path) -> Iterator[tuple[CncfRegistry, TokenServer]]:
    with TokenServer(filled) as tokens, cncf_registry(filled, tokens=tokens) as registry:
        yield registry, tokens


def test_the_cncf_registry_with_tokens(guarded: tuple[CncfRegistry, TokenServer]) -> None:
    registry, tokens = guarded
    with Registries(SETTINGS, credentials=lambda *_: Credentials(USER, PASSWORD)) as registries:
        pusher(registries, registry.host).delete(DIGEST)
        assert tags(registries, registry.host) == ["v2"]
    assert [one.fields["scope"] for one in tokens.requests] == [[SCOPE], [f"repository:{REPOSITORY}:pull"]]
    with Registries(SETTINGS, credentials=anonymous) as registries, pytest.raises(Denied):
        pusher(registries, registry.host).delete(Digest.parse(OTHER.root.digest))
