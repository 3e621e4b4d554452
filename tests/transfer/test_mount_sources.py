"""Repositories that do not have a blob any more, or refuse a mount: the blob is uploaded once, not once per repository."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.transfer.delivery import deliver
from prefect_dist.transfer.repositories import NewRepositories
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from tests import images
from tests.fakes.access import Bearer
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage
from tests.transfer.content import put_image, reference_at

IMAGE = images.image(880, layers=1, layer_bytes=100_000)  # larger than the content without claims
DIGEST, DATA = max(IMAGE.blobs.items(), key=lambda one: len(one[1]))
LAYER = Descriptor(media_type=images.OCI_LAYER, digest=Digest.parse(DIGEST), size=len(DATA))


@pytest.fixture
def shards() -> Iterator[tuple[Session, Session]]:
    """The sessions of two processes of a divided run, with the image in their store."""
    spec = SessionSpec(store=f"memory://{uuid.uuid4().hex}", is_shared=True)
    with ExitStack() as stack:
        one, other = stack.enter_context(open_session(spec)), stack.enter_context(open_session(spec))
        put_image(one, IMAGE)
        yield one, other


def set_note(session: Session, registry: FakeRegistry, note: str | None) -> None:
    with session.store.claims.hold(registry.host, LAYER.digest, pause=session.cancel.pause) as claim:
        claim.note = note


def deliver_to(session: Session, registry: FakeRegistry, *repositories: str) -> list[str]:
    """Deliver the layer to repositories. Return the status of each delivery."""
    return [deliver(session, LAYER, reference_at(registry, f"{one}:v1")).status for one in repositories]


def list_mounts(registry: FakeRegistry) -> list[tuple[str, str, int]]:
    """Return the source, the target and the status of each request for a mount."""
    found = [one for one in registry.requests if one.method == "POST" and "from=" in one.query]
    return [(one.query.split("from=")[1], one.path.split("/")[2], one.status) for one in found]


def count_sessions(registry: FakeRegistry) -> int:
    """Return the number of upload sessions that the registry opened."""
    return len([one for one in registry.requests if one.method == "POST" and one.status == 202])


def count_uploads(registry: FakeRegistry) -> int:
    return len([one for one in registry.requests if one.method == "PUT" and one.status == 201])


def load_other(registry: FakeRegistry, repository: str, image: BuiltImage) -> None:
    images.load(registry, repository, image, "v1")


@pytest.mark.parametrize("note", ["retired", "other"])
def test_an_old_note_costs_one_refused_mount_per_process_and_one_upload(
    shards: tuple[Session, Session], target: FakeRegistry, note: str
) -> None:
    one, other = shards
    load_other(target, "other", images.image(881))
    set_note(one, target, note)

    assert deliver_to(one, target, "new0", "new1", "new2") == ["pushed", "mounted", "mounted"]
    set_note(one, target, note)  # the other process has read the note before the upload
    assert deliver_to(other, target, "new3")[0] == "pushed"
    assert deliver_to(other, target, "new4", "new5") == ["mounted", "mounted"]

    refused = [mount[:2] for mount in list_mounts(target) if mount[2] == 202]
    assert refused == [(note, "new0"), (note, "new3")]
    assert count_uploads(target) == 2
    assert count_sessions(target) == 2  # each upload uses the session of the refused mount


def test_the_note_of_a_process_that_just_uploaded_replaces_an_old_note(
    shards: tuple[Session, Session], target: FakeRegistry
) -> None:
    one, other = shards
    set_note(one, target, "retired")
    assert deliver_to(one, target, "new0") == ["pushed"]
    assert deliver_to(other, target, "new1", "new2") == ["mounted", "mounted"]
    with other.store.claims.hold(target.host, LAYER.digest, pause=other.cancel.pause) as claim:
        assert claim.note == "new0"
    assert list_mounts(target) == [("retired", "new0", 202), ("new0", "new1", 201), ("new0", "new2", 201)]


def test_a_note_without_access_to_its_repository_costs_one_upload(shards: tuple[Session, Session]) -> None:
    one, _ = shards
    with FakeRegistry(auth=Bearer(withheld=frozenset({"secret"}))) as target:
        target.put_blob("secret", DATA)
        set_note(one, target, "secret")
        assert deliver_to(one, target, "new0", "new1", "new2") == ["pushed", "mounted", "mounted"]
        assert count_uploads(target) == 1


def test_a_note_of_the_same_repository_is_checked_with_a_head_even_if_the_repository_is_new(
    shards: tuple[Session, Session], target: FakeRegistry
) -> None:
    one, other = shards
    for session in shards:
        session.memo(NewRepositories).accept([reference_at(target, "new:v1").locator])
    assert deliver_to(one, target, "new") == ["pushed"]
    assert [request.method for request in target.requests if "/blobs/" in request.path] == ["POST", "PUT"]
    before = len(target.requests)

    assert deliver_to(other, target, "new") == ["existed"]

    assert [(request.method, request.path) for request in target.requests[before:]] == [("HEAD", f"/v2/new/blobs/{DIGEST}")]


def test_a_wrong_note_of_the_same_repository_becomes_an_upload_without_a_mount_from_itself(
    shards: tuple[Session, Session], target: FakeRegistry
) -> None:
    one, other = shards
    other.memo(NewRepositories).accept([reference_at(target, "new:v1").locator])
    set_note(one, target, "new")
    assert deliver_to(other, target, "new", "next") == ["pushed", "mounted"]
    assert list_mounts(target) == [("new", "next", 201)]
    assert count_uploads(target) == 1


def test_a_note_is_no_proof_that_its_repository_has_the_blob(shards: tuple[Session, Session], target: FakeRegistry) -> None:
    one, _ = shards
    set_note(one, target, "later")
    assert deliver_to(one, target, "first", "later") == ["pushed", "mounted"]
    assert target.blob("later", DIGEST) == DATA


def test_a_repository_that_lost_a_blob_costs_one_process_one_more_upload(session: Session, target: FakeRegistry) -> None:
    put_image(session, IMAGE)
    assert deliver_to(session, target, "app0") == ["pushed"]
    target.lose("app0", DIGEST)
    assert deliver_to(session, target, "app1", "app2", "app3", "app4") == ["pushed", "mounted", "mounted", "mounted"]
    assert count_uploads(target) == 2
