"""Pushing with credentials: the requested scopes, and bodies that a 401 interrupts."""

from collections import Counter

import httpx
import pytest

from prefect_dist.ocispec.errors import Denied
from prefect_dist.remotes import Registries
from prefect_dist.remotes.pusher import Pusher
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import Fault, Refuse
from tests.fakes.registry import FakeRegistry
from tests.remotes.asking import BLOB, REPOSITORY, SETTINGS, check_message, descriptor, user
from tests.remotes.pushing import CHUNK, Reader, pusher, shape

WANTED = descriptor(BLOB)
OTHER = "other/app"
BIG = BLOB * 100  # 25.6 MB: more than sockets hold
PUSH, PULL_OTHER = f"repository:{REPOSITORY}:pull,push", f"repository:{OTHER}:pull"
UNAUTHORIZED = Refuse(401, (("WWW-Authenticate", 'Basic realm="fake"'),))


def open_registries() -> Registries:
    return Registries(SETTINGS, credentials=lambda *_: user("me", "secret"))


def scopes(registry: FakeRegistry) -> list[list[str]]:
    """The scopes of each token request."""
    return [sorted(httpx.QueryParams(one.query).get_list("scope")) for one in registry.find_requests("GET", "/token")]


def push(target: Pusher, content: bytes = BLOB) -> Reader:
    read = Reader(content)
    target.upload(descriptor(content), read)
    return read


@pytest.mark.parametrize("chunk_bytes", [CHUNK, len(BLOB)])
def test_a_push_needs_one_token(registries: Registries, chunk_bytes: int) -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        target = pusher(registries, registry, chunk_bytes=chunk_bytes)
        assert not target.has(WANTED)
        read = push(target)
        assert target.has(WANTED)
        assert scopes(registry) == [[PUSH]]
        assert [one.status for one in registry.requests].count(401) == 1
        assert len(read.offsets) == len([one for one in registry.requests if one.received])  # no body was sent twice


def test_a_token_is_requested_before_a_body_is_sent() -> None:
    for auth in (Basic("me", "secret"), Bearer(user="me", password="secret", refuse_anonymous=True)):
        with FakeRegistry(auth=auth) as registry, open_registries() as registries:
            assert push(pusher(registries, registry)).offsets == [0]
            assert shape(registry)[:1] + shape(registry)[-2:] == ["POST", "POST", "PUT"]
            assert registry.blob(REPOSITORY, str(WANTED.digest)) == BLOB


@pytest.mark.parametrize("chunk_bytes", [CHUNK, len(BLOB)])
def test_a_token_that_expires_during_an_upload_is_replaced(registries: Registries, chunk_bytes: int) -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        target = pusher(registries, registry, chunk_bytes=chunk_bytes)
        assert not target.mount(WANTED)  # opens the upload
        registry.revoke_tokens()
        read = push(target)
        assert registry.blob(REPOSITORY, str(WANTED.digest)) == BLOB
        assert read.offsets[:2] == [0, 0]
        assert Counter(one.status for one in registry.requests)[401] == 2
        assert scopes(registry) == [[PUSH]] * 2


@pytest.mark.parametrize("chunked", [True, False])
def test_an_expired_token_is_replaced_before_a_large_body(registries: Registries, *, chunked: bool) -> None:
    # the registry answers 401 at once and closes the connection in the middle of the body
    with FakeRegistry(auth=Bearer()) as registry:
        wanted = descriptor(BIG)
        target = pusher(registries, registry, chunked=chunked, chunk_bytes=len(BIG) // 2)
        assert not target.mount(wanted)
        registry.revoke_tokens()
        push(target, BIG)
        assert registry.blob(REPOSITORY, str(wanted.digest)) == BIG


def test_basic_auth_is_challenged_once_for_all_pushes() -> None:
    with FakeRegistry(auth=Basic("me", "secret")) as registry, open_registries() as registries:
        target = pusher(registries, registry, chunk_bytes=CHUNK)
        for _ in range(3):
            push(target)
        assert [one.status for one in registry.requests].count(401) == 1


def test_a_denied_push_is_reported(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer(withheld=frozenset({REPOSITORY}))) as registry:
        with pytest.raises(Denied) as caught:
            push(pusher(registries, registry))
        check_message(caught.value, registry.host, str(WANTED.digest))
        assert [one.received for one in registry.requests] == [0] * len(registry.requests)


def test_a_mount_needs_both_repositories(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        registry.put_blob(OTHER, BLOB)
        target = pusher(registries, registry)
        assert target.mount(WANTED, source=OTHER)
        assert scopes(registry) == [[PULL_OTHER, PUSH]]
        assert target.has(WANTED)


def test_a_blob_is_not_mounted_from_an_inaccessible_source(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer(withheld=frozenset({OTHER}))) as registry:
        registry.put_blob(OTHER, BLOB)
        target = pusher(registries, registry)
        assert not target.mount(WANTED, source=OTHER)
        push(target)
        assert registry.blob(REPOSITORY, str(WANTED.digest)) == BLOB


def test_a_blob_is_not_mounted_from_a_source_without_tokens(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        registry.put_blob(OTHER, BLOB)
        registry.inject(Fault(path="/token", action=Refuse(403)))
        target = pusher(registries, registry)
        assert not target.mount(WANTED, source=OTHER)
        push(target)
        assert registry.blob(REPOSITORY, str(WANTED.digest)) == BLOB


def test_a_persistent_401_is_reported(registries: Registries, registry: FakeRegistry) -> None:
    registry.inject(Fault(method="PUT", path=".*", nth=None, action=UNAUTHORIZED))
    with pytest.raises(Denied) as caught:
        push(pusher(registries, registry))
    check_message(caught.value, registry.host, "log in")
    assert shape(registry) == ["POST", "PUT"]
