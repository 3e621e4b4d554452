"""Deletion of tags and manifests: the deleted objects, registries without deletion, and token scopes."""

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
from tests.remotes.asking import REPOSITORY, SETTINGS, anonymous, check_message, fetcher, list_requests, user
from tests.remotes.pushing import pusher

IMAGE, OTHER = images.image(seed=1), images.image(seed=2)
DIGEST = Digest.parse(IMAGE.root.digest)
PATH = f"/v2/{REPOSITORY}/manifests"
SCOPE = f"repository:{REPOSITORY}:delete,pull"


def fill(registry: FakeRegistry) -> None:
    """Push two tags of one image, and one tag of another."""
    for image, tag in ((IMAGE, "v1"), (IMAGE, "latest"), (OTHER, "v2")):
        images.load(registry, REPOSITORY, image, tag)


def tags(registries: Registries, host: FakeRegistry | str) -> list[str]:
    return sorted(fetcher(registries, host).tags())


def test_deleting_a_tag_keeps_the_manifest_and_other_tags(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    assert pusher(registries, registry).delete_tag("v1")
    assert list_requests(registry) == [f"DELETE {PATH}/v1"]
    assert registry.manifest(REPOSITORY, str(DIGEST)) is not None
    assert tags(registries, registry) == ["latest", "v2"]


def test_deleting_a_manifest_deletes_its_tags(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    pusher(registries, registry).delete(DIGEST)
    assert list_requests(registry) == [f"DELETE {PATH}/{DIGEST}"]
    assert registry.manifest(REPOSITORY, str(DIGEST)) is None
    assert tags(registries, registry) == ["v2"]
    assert all(registry.blob(REPOSITORY, digest) is not None for digest in IMAGE.blobs)


def test_deleting_a_missing_tag_or_manifest_succeeds(registries: Registries, registry: FakeRegistry) -> None:
    target = pusher(registries, registry)
    assert target.delete_tag("v1")
    target.delete(DIGEST)
    assert [(one.method, one.status) for one in registry.requests] == [("DELETE", 404), ("GET", 404), ("DELETE", 404)]


def test_a_404_for_an_existing_tag_means_that_tags_cannot_be_deleted(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    registry.inject(Fault(method="DELETE", action=Refuse(404)))
    assert not pusher(registries, registry).delete_tag("v1")
    assert tags(registries, registry) == ["latest", "v1", "v2"]


@pytest.mark.parametrize("tag", ["", "a b", "../v1", "a/b", f"sha256:{'0' * 64}", "x" * 129])
def test_an_invalid_tag_is_not_sent(registries: Registries, registry: FakeRegistry, tag: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        pusher(registries, registry).delete_tag(tag)
    check_message(caught.value, f"bad tag {tag!r}")
    assert registry.requests == []


# Registries without deletion.


@pytest.mark.parametrize("status", [400, 405])
def test_a_registry_without_deletion_of_tags_is_recognized(registries: Registries, registry: FakeRegistry, status: int) -> None:
    registry.inject(Fault(method="DELETE", action=Answer(status)))
    assert not pusher(registries, registry).delete_tag("v1")
    assert list_requests(registry) == [f"DELETE {PATH}/v1"]


@pytest.mark.parametrize("status", [400, 405])
def test_a_registry_without_deletion_is_unsupported(registries: Registries, registry: FakeRegistry, status: int) -> None:
    registry.inject(Fault(method="DELETE", action=Answer(status, (), b'{"errors": [{"code": "UNSUPPORTED"}]}')))
    with pytest.raises(Unsupported) as caught:
        pusher(registries, registry).delete(DIGEST)
    check_message(caught.value, f"{registry.host}/{REPOSITORY}@{DIGEST}", f"{status} UNSUPPORTED", "storage.delete.enabled")


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Denied), (403, Denied), (412, InvalidInput), (429, Unavailable), (500, Unavailable)]
)
def test_any_other_refusal_is_reported(
    registries: Registries, registry: FakeRegistry, status: int, kind: type[DistError]
) -> None:
    registry.inject(Fault(method="DELETE", nth=None, action=Answer(status)))
    target = pusher(registries, registry)
    attempts: list[Callable[[], object]] = [lambda: target.delete_tag("v1"), lambda: target.delete(DIGEST)]
    for attempt in attempts:
        with pytest.raises(kind) as caught:
            attempt()
        check_message(caught.value, f"{registry.host}/{REPOSITORY}", str(status))


def test_a_redirect_that_turns_delete_into_get_is_an_error(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    registry.inject(Fault(method="DELETE", action=Answer(302, (("Location", f"{PATH}/v1"),))))
    with pytest.raises(Unsupported, match="turns it into GET"):
        pusher(registries, registry).delete_tag("v1")


# Tokens.


def test_a_token_for_deletion_is_requested() -> None:
    with FakeRegistry(auth=Bearer(user="me", password="secret", refuse_anonymous=True)) as guarded:
        fill(guarded)
        with Registries(SETTINGS, credentials=lambda *_: user("me", "secret")) as registries:
            target = pusher(registries, guarded)
            assert target.delete_tag("v1")
            target.delete(DIGEST)
        scopes = [parse_qs(one.query)["scope"] for one in guarded.find_requests("GET", "/token")]
        assert [one.status for one in guarded.requests].count(401) == 1
    assert scopes == [[SCOPE]]


def test_the_challenge_of_a_registry_may_ask_for_the_push_scope(registries: Registries, registry: FakeRegistry) -> None:
    fill(registry)
    with FakeRegistry(auth=Bearer()) as tokens:
        scope = f"repository:{REPOSITORY}:pull,push"
        challenge = f'Bearer realm="http://{tokens.host}/token",service="fake",scope="{scope}"'
        registry.inject(Fault(method="DELETE", action=Answer(401, (("WWW-Authenticate", challenge),))))
        assert pusher(registries, registry).delete_tag("v1")
        (one,) = tokens.requests
        assert parse_qs(one.query)["scope"] == [f"repository:{REPOSITORY}:delete,pull,push"]


def test_a_denied_deletion_is_reported(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer(withheld=frozenset({REPOSITORY}))) as guarded:
        fill(guarded)
        with pytest.raises(Denied) as caught:
            pusher(registries, guarded).delete(DIGEST)
        check_message(caught.value, str(DIGEST), "log in")
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


def test_the_cncf_registry_deletes_manifests_but_no_tags(registries: Registries, filled: Path) -> None:
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


def test_the_cncf_registry_without_deletion_is_unsupported(registries: Registries, filled: Path) -> None:
    with cncf_registry(filled, deletes=False) as registry:
        target = pusher(registries, registry.host)
        assert not target.delete_tag("v1")
        with pytest.raises(Unsupported) as caught:
            target.delete(DIGEST)
        check_message(caught.value, str(DIGEST), "405", "storage.delete.enabled")
        assert tags(registries, registry.host) == ["latest", "v1", "v2"]


@pytest.fixture
def guarded(filled: Path) -> Iterator[tuple[CncfRegistry, TokenServer]]:
    with TokenServer(filled) as tokens, cncf_registry(filled, tokens=tokens) as registry:
        yield registry, tokens


def test_the_cncf_registry_deletes_with_a_token(guarded: tuple[CncfRegistry, TokenServer]) -> None:
    registry, tokens = guarded
    with Registries(SETTINGS, credentials=lambda *_: Credentials(USER, PASSWORD)) as registries:
        pusher(registries, registry.host).delete(DIGEST)
        assert tags(registries, registry.host) == ["v2"]
    assert [one.fields["scope"] for one in tokens.requests] == [[SCOPE], [f"repository:{REPOSITORY}:pull"]]
    with Registries(SETTINGS, credentials=anonymous) as registries, pytest.raises(Denied):
        pusher(registries, registry.host).delete(Digest.parse(OTHER.root.digest))
