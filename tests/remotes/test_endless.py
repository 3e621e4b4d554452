"""Endless bodies and headers: wherever the client reads a response, it stops early and reports the reason."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from prefect_dist.ocispec.errors import Corrupt, Denied, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes import Registries
from tests import images
from tests.fakes.access import Bearer
from tests.fakes.faults import Action, Answer, Fault, Headers, Lengthen, WithHeaders, WithoutHeaders
from tests.fakes.registry import FakeRegistry
from tests.remotes.asking import BLOB, REPOSITORY, check_message, descriptor, fetcher, read, reference
from tests.remotes.pushing import CHUNK, Reader, pusher

IMAGE = images.image(seed=1)
ROOT = descriptor(IMAGE.manifests[-1].raw, IMAGE.root.media_type)
WANTED = descriptor(BLOB)
UPLOADS = f"/v2/{REPOSITORY}/blobs/uploads/.*"
# More than the socket buffers hold, so that the registry notices when the client stops reading.
BODY = b"[" * (64 * 1024 * 1024)
LOCATION = (("Location", "/here"),)

Act = Callable[[Registries, FakeRegistry], object]


@dataclass(frozen=True, slots=True)
class Place:
    """A request with an endless response, how it is caused, and the expected result: a value or an error.

    With `status` None, the response is unchanged except for its length. `of_headers` is the expected result for endless
    headers, and `head` the status of the HEAD before.
    """

    method: str
    path: str
    status: int | None
    act: Act
    outcome: object
    headers: Headers = ()
    of_headers: object = Unavailable
    head: int | None = None

    def answer(self, body: bytes) -> Action:
        return Lengthen(len(body)) if self.status is None else Answer(self.status, self.headers, body)


def resolve(registries: Registries, registry: FakeRegistry) -> str:
    return str(registries.resolve(reference(registry)).descriptor.digest)


def fetch(registries: Registries, registry: FakeRegistry) -> bytes:
    return read(fetcher(registries, registry), WANTED)


def fetch_manifest(registries: Registries, registry: FakeRegistry) -> bytes:
    return read(fetcher(registries, registry), ROOT)


def referrers(registries: Registries, registry: FakeRegistry) -> list[object]:
    return list(fetcher(registries, registry).referrers(ROOT))


def tags(registries: Registries, registry: FakeRegistry) -> list[str]:
    return list(fetcher(registries, registry).tags())


def catalog(registries: Registries, registry: FakeRegistry) -> list[str]:
    return list(registries.list_repositories(registry.host))


def untag(registries: Registries, registry: FakeRegistry) -> bool:
    return pusher(registries, registry).delete_tag("v1")


def delete(registries: Registries, registry: FakeRegistry) -> None:
    pusher(registries, registry).delete(ROOT.digest)


def has(registries: Registries, registry: FakeRegistry) -> bool:
    return pusher(registries, registry).has(replace(WANTED, size=len(BODY)))


def mount(registries: Registries, registry: FakeRegistry) -> bool:
    return pusher(registries, registry).mount(WANTED, source="other/app")


def upload(registries: Registries, registry: FakeRegistry) -> None:
    pusher(registries, registry).upload(WANTED, Reader(BLOB))


def upload_in_chunks(registries: Registries, registry: FakeRegistry) -> None:
    pusher(registries, registry, chunk_bytes=CHUNK).upload(WANTED, Reader(BLOB))


def put(registries: Registries, registry: FakeRegistry) -> object:
    return pusher(registries, registry).put(IMAGE.manifests[-1].raw, ROOT, tag="v1")


PLACES = {
    "manifest": Place("GET", ".*/manifests/v1", 200, resolve, Unsupported, head=405),
    "refused manifest": Place("GET", ".*/manifests/v1", 403, resolve, Denied, head=403),
    "manifest by digest": Place("GET", ".*/manifests/.*", 200, fetch_manifest, Corrupt),
    "blob": Place("GET", ".*/blobs/.*", 200, fetch, Corrupt),
    "missing blob": Place("GET", ".*/blobs/.*", 404, fetch, NotFound),
    "redirected blob": Place("GET", ".*/blobs/.*", 307, fetch, NotFound, headers=LOCATION),
    "failing blob": Place("GET", ".*/blobs/.*", 503, fetch, Unavailable),
    "token": Place("GET", "/token", 200, fetch, Unavailable),
    "refused token": Place("GET", "/token", 401, fetch, Denied),
    "referrers": Place("GET", ".*/referrers/.*", 200, referrers, Unsupported),
    "no referrers": Place("GET", ".*/referrers/.*", 404, referrers, []),
    "tag of referrers": Place("GET", ".*/manifests/sha256-.*", 200, referrers, Unsupported),
    "tags": Place("GET", ".*/tags/list", 200, tags, Unsupported),
    "no tags": Place("GET", ".*/tags/list", 404, tags, NotFound),
    "catalog": Place("GET", "/v2/_catalog", 200, catalog, Unsupported),
    "no catalog": Place("GET", "/v2/_catalog", 401, catalog, Denied),
    "looked for": Place("GET", ".*/blobs/.*", 200, has, True, head=405),
    "mounted": Place("POST", UPLOADS, 201, mount, True),
    "not mounted": Place("POST", UPLOADS, 202, mount, False, headers=LOCATION),
    "upload begun": Place("POST", UPLOADS, 202, upload, InvalidInput, headers=LOCATION),
    "upload refused": Place("POST", UPLOADS, 403, upload, Denied),
    "chunk": Place("PATCH", UPLOADS, None, upload_in_chunks, None, of_headers=None),
    "upload ended": Place("PUT", UPLOADS, None, upload, None),
    "manifest put": Place("PUT", ".*/manifests/.*", None, put, None),
    "tag deleted": Place("DELETE", ".*/manifests/v1", None, untag, True),
    "tag not deleted": Place("DELETE", ".*/manifests/v1", 405, untag, False),
    "manifest deleted": Place("DELETE", ".*/manifests/.*", None, delete, None),
    "manifest not deleted": Place("DELETE", ".*/manifests/.*", 400, delete, Unsupported),
}


def outcome(place: Place, registries: Registries, registry: FakeRegistry) -> object:
    try:
        return place.act(registries, registry)
    except DistError as exc:
        check_message(exc)
        return type(exc)


def is_expected(found: object, expected: object) -> bool:
    return issubclass(found, expected) if isinstance(found, type) and isinstance(expected, type) else found == expected


@pytest.fixture
def struck(request: pytest.FixtureRequest) -> FakeRegistry:
    """A registry with the requested content; with tokens, if the place is about tokens."""
    place: Place = request.getfixturevalue("place")
    registry = FakeRegistry(auth=Bearer() if place.path == "/token" else None, referrers="manifests/sha256" not in place.path)
    for content in IMAGE.blobs.values():
        registry.put_blob(REPOSITORY, content)
    if place.act is not put:
        images.load(registry, REPOSITORY, IMAGE, "v1")
    if place.act is fetch:
        registry.put_blob(REPOSITORY, BLOB)
    if place.head is not None:
        registry.inject(Fault(method="HEAD", nth=None, action=Answer(place.head)))
    return registry


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_an_endless_body_is_not_read_to_its_end(
    registries: Registries, struck: FakeRegistry, place: Place, *, announced: bool
) -> None:
    actions = [place.answer(BODY), *([] if announced else [WithoutHeaders(("Content-Length",))])]
    for action in actions:
        struck.inject(Fault(method=place.method, path=place.path, nth=None, action=action))
    with struck as registry:
        assert is_expected(outcome(place, registries, registry), place.outcome)
        answers = registry.find_requests(place.method, place.path)
    assert answers
    assert all(one.sent < len(BODY) / 2 for one in answers)


@pytest.mark.parametrize(
    "headers", [(("X-Long", "x" * 70_000),), tuple((f"X-{n}", "y") for n in range(200))], ids=["long", "many"]
)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_endless_headers_are_an_error(registries: Registries, struck: FakeRegistry, place: Place, headers: Headers) -> None:
    for action in (place.answer(b""), WithHeaders(headers)):
        struck.inject(Fault(method=place.method, path=place.path, nth=None, action=action))
    with struck as registry:
        assert is_expected(outcome(place, registries, registry), place.of_headers)
        assert registry.find_requests(place.method, place.path)
