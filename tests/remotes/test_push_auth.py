"""Pushing where credentials are wanted: for which scopes, and what becomes of a body that a 401 interrupts."""

from collections import Counter

import httpx
import pytest

from prefect_dist.ocispec.errors import Denied
from prefect_dist.remotes import Registries
from prefect_dist.remotes.pusher import Pusher
from tests.fakes.access import Basic, Bearer
from tests.fakes.faults import Fault, Refuse
from tests.fakes.registry import FakeRegistry
from tests.remotes.asking import BLOB, REPOSITORY, SETTINGS, check_told, descriptor, user
from tests.remotes.pushing import CHUNK, Reader, pusher, shape

WANTED = descriptor(BLOB)
OTHER = "other/app"
BIG = BLOB * 100  # 25.6 MB: more than sockets hold
PUSH, PULL_OTHER = f"repository:{REPOSITORY}:pull,push", f"repository:{OTHER}:pull"
UNAUTHORIZED = Refuse(401, (("WWW-Authenticate", 'Basic realm="fake"'),))


def login_commands() -> Registries:
    return Registries(SETTINGS, credentials=lambda *_: user("me", "secret"))


def scopes(registry: FakeRegistry) -> list[list[str]]:
    """What each token was asked for."""
    return [sorted(httpx.QueryParams(one.query).get_list("scope")) for one in registry.asked("GET", "/token")]


def push(target: Pusher, content: bytes = BLOB) -> Reader:
    read = Reader(content)
    target.upload(descriptor(content), read)
    return read


@pytest.mark.parametrize("chunk_bytes", [CHUNK, len(BLOB)])
def test_one_token_for_all_of_a_push(registries: Registries, chunk_bytes: int) -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        target = pusher(registries, registry, chunk_bytes=chunk_bytes)
        assert not target.has(WANTED)
        read = push(target)
        assert target.has(WANTED)
        assert scopes(registry) == [[PUSH]]
        assert [one.status for one in registry.requests].count(401) == 1
        assert len(read.offsets) == len([one for one in registry.requests if one.received])  # no body was sent twice


def test_a_token_is_asked_for_before_a_body_is_sent() -> None:
    for auth in (Basic("me", "secret"), Bearer(user="me", password="secret", refuse_anonymous=True)):
        with FakeRegistry(auth=auth) as registry, login_commands() as registries:
            assert push(pusher(registries, registry)).offsets == [0]
            assert shape(registry)[:1] + shape(registry)[-2:] == ["POST", "POST", "PUT"]
            assert registry.blob(REPOSITORY, str(WANTED.digest)) == BLOB


@pytest.mark.parametrize("chunk_bytes", [CHUNK, len(BLOB)])
def test_a_token_that_ends_on_the_way(registries: Registries, chunk_bytes: int) -> None:
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
def test_a_token_that_ends_before_a_big_body(registries: Registries, *, chunked: bool) -> None:
    # the registry answers 401 at once and closes the connection in the middle of the body
    with FakeRegistry(auth=Bearer()) as registry:
        wanted = descriptor(BIG)
        target = pusher(registries, registry, chunked=chunked, chunk_bytes=len(BIG) // 2)
        assert not target.mount(wanted)
        registry.revoke_tokens()
        push(target, BIG)
        assert registry.blob(REPOSITORY, str(wanted.digest)) == BIG


def test_a_registry_that_wants_to_be_told_each_time() -> None:
    with FakeRegistry(auth=Basic("me", "secret")) as registry, login_commands() as registries:
        target = pusher(registries, registry, chunk_bytes=CHUNK)
        for _ in range(3):
            push(target)
        assert [one.status for one in registry.requests].count(401) == 1


def test_who_may_not_push_is_told_so(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer(withheld=frozenset({REPOSITORY}))) as registry:
        with pytest.raises(Denied) as caught:
            push(pusher(registries, registry))
        check_told(caught.value, registry.host, str(WANTED.digest))
        assert [one.received for one in registry.requests] == [0] * len(registry.requests)


def test_a_mount_needs_both_repositories(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        registry.put_blob(OTHER, BLOB)
        target = pusher(registries, registry)
        assert target.mount(WANTED, source=OTHER)
        assert scopes(registry) == [[PULL_OTHER, PUSH]]
        assert target.has(WANTED)


def test_a_source_that_may_not_be_read_is_not_mounted(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer(withheld=frozenset({OTHER}))) as registry:
        registry.put_blob(OTHER, BLOB)
        target = pusher(registries, registry)
        assert not target.mount(WANTED, source=OTHER)
        push(target)
        assert registry.blob(REPOSITORY, str(WANTED.digest)) == BLOB


def test_a_source_for_which_there_are_no_tokens_is_not_mounted(registries: Registries) -> None:
    with FakeRegistry(auth=Bearer()) as registry:
        registry.put_blob(OTHER, BLOB)
        registry.inject(Fault(path="/token", action=Refuse(403)))
        target = pusher(registries, registry)
        assert not target.mount(WANTED, source=OTHER)
        push(target)
        assert registry.blob(REPOSITORY, str(WANTED.digest)) == BLOB


def test_a_401_that_stays_is_told(registries: Registries, registry: FakeRegistry) -> None:
    registry.inject(Fault(method="PUT", path=".*", nth=None, action=UNAUTHORIZED))
    with pytest.raises(Denied) as caught:
        push(pusher(registries, registry))
    check_told(caught.value, registry.host, "log in")
    assert shape(registry) == ["POST", "PUT"]
