import json

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Corrupt, Denied, DistError, InvalidInput, NotFound, Unavailable, Unsupported
from prefect_dist.remotes import Registries, RegistryError
from tests import images
from tests.fakes.faults import (
    Action,
    Answer,
    Cut,
    Fault,
    Flip,
    Redirect,
    Replace,
    WithHeaders,
    WithoutHeaders,
)
from tests.fakes.registry import FakeRegistry
from tests.remotes.asking import BLOB, REPOSITORY, check_message, list_requests, reference

IMAGE = images.image(seed=1)
OTHER_DIGEST = "sha256:" + "0" * 64
MANIFESTS = f"/v2/{REPOSITORY}/manifests/"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
BIG = b" " * MAX_MANIFEST_BYTES + b"{}"
HTML = b"<html><body>please log in</body></html>"


@pytest.fixture(autouse=True)
def _image(registry: FakeRegistry) -> None:
    images.load(registry, REPOSITORY, IMAGE, "v1")


def refusal(registries: Registries, registry: FakeRegistry, named: str = ":v1") -> DistError:
    with pytest.raises(DistError) as caught:
        registries.resolve(reference(registry, named))
    check_message(caught.value, str(reference(registry, named)))
    return caught.value


def on_head(registry: FakeRegistry, action: Action, *, path: str = ".*") -> None:
    registry.inject(Fault(method="HEAD", path=path, nth=None, action=action))


def on_get(registry: FakeRegistry, action: Action) -> None:
    registry.inject(Fault(method="GET", nth=None, action=action))


@pytest.mark.parametrize(
    "image",
    [
        images.image(seed=2),
        images.image(seed=2, docker=True),
        images.index([images.image(seed=2)]),
        images.index([images.image(seed=2, docker=True)], docker=True),
        images.artifact(3),
    ],
    ids=["oci", "docker", "index", "list", "artifact"],
)
def test_one_head_resolves_a_tag(registries: Registries, registry: FakeRegistry, image: images.BuiltImage) -> None:
    images.load(registry, REPOSITORY, image, "v2")
    found = registries.resolve(reference(registry, ":v2"))
    assert found.name == f"{registry.host}/{REPOSITORY}:v2"
    root = (str(found.descriptor.digest), found.descriptor.media_type, found.descriptor.size)
    assert root == image.root
    assert list_requests(registry) == [f"HEAD {MANIFESTS}v2"]


def test_the_head_accepts_all_types_and_no_content_coding(registries: Registries, registry: FakeRegistry) -> None:
    registries.resolve(reference(registry))
    (head,) = registry.requests
    accepted = [one.strip() for one in head.headers["accept"].split(",")]
    assert {images.OCI_INDEX, images.DOCKER_LIST, images.OCI_MANIFEST, images.DOCKER_MANIFEST, "*/*"} <= set(accepted)
    assert (head.headers["accept-encoding"], head.headers["host"]) == ("identity", registry.host)
    assert {"authorization", "cookie", "range", "content-length"}.isdisjoint(head.headers)


@pytest.mark.parametrize(
    "action",
    [
        WithoutHeaders(("Docker-Content-Digest",)),
        WithoutHeaders(("Content-Length",)),
        WithoutHeaders(("Content-Type",)),
        WithoutHeaders(("Docker-Content-Digest", "Content-Length", "Content-Type")),
        WithHeaders((("Content-Type", "application/octet-stream"),)),
        WithHeaders((("Content-Type", "text/html"),)),
        WithHeaders((("Content-Length", "many"),)),
        WithHeaders((("Content-Length", "9" * 5000),)),
        WithHeaders((("Docker-Content-Digest", ""),)),
        Answer(403),
        Answer(405),
        Answer(501),
    ],
    ids=str,
)
def test_an_incomplete_head_is_followed_by_a_get(registries: Registries, registry: FakeRegistry, action: Action) -> None:
    on_head(registry, action)
    found = registries.resolve(reference(registry)).descriptor
    assert (str(found.digest), found.media_type, found.size) == IMAGE.root
    assert list_requests(registry) == [f"HEAD {MANIFESTS}v1", f"GET {MANIFESTS}v1"]


@pytest.mark.parametrize("suffix", ["; charset=utf-8", ";charset=utf-8", " ; a=b; c=d"])
def test_parameters_of_the_content_type_are_ignored(registries: Registries, registry: FakeRegistry, suffix: str) -> None:
    on_head(registry, WithHeaders((("Content-Type", IMAGE.root.media_type.replace("oci", "OCI") + suffix),)))
    assert registries.resolve(reference(registry)).descriptor.media_type == IMAGE.root.media_type
    assert list_requests(registry) == [f"HEAD {MANIFESTS}v1"]


def test_a_header_may_hold_any_byte(registries: Registries, registry: FakeRegistry) -> None:
    on_head(registry, WithHeaders((("X-Served-By", "caf\xe9"), ("X-Served-By", "\xff\x01"))))
    assert str(registries.resolve(reference(registry)).descriptor.digest) == IMAGE.root.digest


@pytest.mark.parametrize("named", ["@{}", ":v1@{}", ":other@{}"])
def test_a_pinned_digest_is_requested_and_wins(registries: Registries, registry: FakeRegistry, named: str) -> None:
    on_head(registry, WithHeaders((("Docker-Content-Digest", OTHER_DIGEST),)))
    pinned = named.format(IMAGE.root.digest)
    found = registries.resolve(reference(registry, pinned))
    assert str(found.descriptor.digest) == IMAGE.root.digest
    assert found.name == f"{registry.host}/{REPOSITORY}{pinned}"
    assert list_requests(registry) == [f"HEAD {MANIFESTS}{IMAGE.root.digest}"]


def test_a_pinned_digest_needs_no_digest_header(registries: Registries, registry: FakeRegistry) -> None:
    on_head(registry, WithoutHeaders(("Docker-Content-Digest",)))
    registries.resolve(reference(registry, f"@{IMAGE.root.digest}"))
    assert list_requests(registry) == [f"HEAD {MANIFESTS}{IMAGE.root.digest}"]


def test_a_pinned_sha512_digest_is_resolved(registries: Registries, registry: FakeRegistry) -> None:
    raw = IMAGE.manifests[-1].raw
    digest = registry.put_manifest(REPOSITORY, raw, images.OCI_MANIFEST, algorithm="sha512")
    on_head(registry, Answer(405))
    assert str(registries.resolve(reference(registry, f"@{digest}")).descriptor.digest) == digest


def test_a_pinned_digest_of_a_blob_is_resolved(registries: Registries, registry: FakeRegistry) -> None:
    digest = registry.put_blob(REPOSITORY, BLOB)
    found = registries.resolve(reference(registry, f":v1@{digest}")).descriptor
    assert (str(found.digest), found.media_type, found.size) == (digest, "application/octet-stream", len(BLOB))
    assert list_requests(registry) == [f"HEAD {MANIFESTS}{digest}", f"HEAD /v2/{REPOSITORY}/blobs/{digest}"]


def test_a_hint_at_a_blob_requests_no_manifest(registries: Registries, registry: FakeRegistry) -> None:
    digest = registry.put_blob(REPOSITORY, BLOB)
    found = registries.resolve(reference(registry, f"@{digest}"), media_type=images.OCI_LAYER).descriptor
    assert (str(found.digest), found.size) == (digest, len(BLOB))
    assert list_requests(registry) == [f"HEAD /v2/{REPOSITORY}/blobs/{digest}"]


@pytest.mark.parametrize("named", [":v1", f"@{IMAGE.root.digest}"])
def test_a_hint_at_a_manifest_is_the_accepted_type(registries: Registries, registry: FakeRegistry, named: str) -> None:
    found = registries.resolve(reference(registry, named), media_type=images.OCI_MANIFEST).descriptor
    assert str(found.digest) == IMAGE.root.digest
    assert [one.headers["accept"] for one in registry.requests] == [images.OCI_MANIFEST]


@pytest.mark.parametrize("media_type", ["", "*", "caf\xe9/au-lait", "a/b\r\nX-Evil: yes"])
def test_an_invalid_hint_is_not_sent(registries: Registries, registry: FakeRegistry, media_type: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        registries.resolve(reference(registry), media_type=media_type)
    check_message(caught.value, str(reference(registry)), "expected type/subtype")
    assert registry.requests == []


def test_a_blob_without_a_reported_size_is_refused(registries: Registries, registry: FakeRegistry) -> None:
    digest = registry.put_blob(REPOSITORY, BLOB)
    on_head(registry, WithoutHeaders(("Content-Length",)), path=".*/blobs/.*")
    assert isinstance(refusal(registries, registry, f"@{digest}"), Unsupported)


def test_a_missing_pinned_digest_is_not_found(registries: Registries, registry: FakeRegistry) -> None:
    assert isinstance(refusal(registries, registry, f"@{OTHER_DIGEST}"), NotFound)
    assert list_requests(registry) == [f"HEAD {MANIFESTS}{OTHER_DIGEST}", f"HEAD /v2/{REPOSITORY}/blobs/{OTHER_DIGEST}"]


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_the_blobs_endpoint_is_tried_only_after_a_404(registries: Registries, registry: FakeRegistry, status: int) -> None:
    on_head(registry, Answer(status))
    refusal(registries, registry, f"@{IMAGE.root.digest}")
    assert list_requests(registry) == [f"HEAD {MANIFESTS}{IMAGE.root.digest}"]


def test_the_error_of_the_second_request_does_not_mention_the_first(registries: Registries, registry: FakeRegistry) -> None:
    digest = registry.put_blob(REPOSITORY, BLOB)
    on_head(registry, Redirect("http://127.0.0.1:1/gone"), path=".*/blobs/.*")
    error = refusal(registries, registry, f"@{digest}")
    assert isinstance(error, Unavailable)
    assert "Connection refused" in str(error)
    assert "not found" not in str(error)


def test_an_unknown_tag_is_not_requested_as_a_blob(registries: Registries, registry: FakeRegistry) -> None:
    assert isinstance(refusal(registries, registry, ":v2"), NotFound)
    assert list_requests(registry) == [f"HEAD {MANIFESTS}v2"]


@pytest.mark.parametrize("signed", ["json", "prettyjws"])
def test_schema_1_is_refused_by_its_type(registries: Registries, registry: FakeRegistry, signed: str) -> None:
    media_type = f"application/vnd.docker.distribution.manifest.v1+{signed}"
    on_head(registry, WithHeaders((("Content-Type", media_type),)))
    error = refusal(registries, registry)
    assert isinstance(error, Unsupported)
    assert "schema 1" in str(error)
    assert list_requests(registry) == [f"HEAD {MANIFESTS}v1"]


def test_schema_1_is_refused_by_its_content(registries: Registries, registry: FakeRegistry) -> None:
    registry.put_manifest(REPOSITORY, b'{"schemaVersion": 1, "fsLayers": []}', "application/json", tag="old")
    error = refusal(registries, registry, ":old")
    assert isinstance(error, Unsupported)
    assert "schema 1" in str(error)


def test_a_big_manifest_is_refused_by_its_head(registries: Registries, registry: FakeRegistry) -> None:
    registry.put_manifest(REPOSITORY, BIG[:-1], images.OCI_MANIFEST, tag="big")
    error = refusal(registries, registry, ":big")
    assert isinstance(error, Unsupported)
    assert str(len(BIG) - 1) in str(error)
    assert list_requests(registry) == [f"HEAD {MANIFESTS}big"]


def test_a_manifest_of_exactly_the_limit_is_accepted(registries: Registries, registry: FakeRegistry) -> None:
    registry.put_manifest(REPOSITORY, BIG[:-2], images.OCI_MANIFEST, tag="big")
    assert registries.resolve(reference(registry, ":big")).descriptor.size == MAX_MANIFEST_BYTES


@pytest.mark.parametrize("body", [HTML, b"", b"[]", b'{"schemaVersion": 2}', b"\x00\xff\x1b[31m", b'"' + b"x" * 5000])
def test_a_document_that_is_no_manifest_is_refused(registries: Registries, registry: FakeRegistry, body: bytes) -> None:
    on_head(registry, Replace(body))
    on_get(registry, Replace(body))
    assert isinstance(refusal(registries, registry), InvalidInput)
    assert list_requests(registry) == [f"HEAD {MANIFESTS}v1", f"GET {MANIFESTS}v1"]


def test_html_instead_of_a_pinned_manifest_is_corrupt(registries: Registries, registry: FakeRegistry) -> None:
    on_head(registry, Replace(HTML))
    on_get(registry, Replace(HTML))
    error = refusal(registries, registry, f"@{IMAGE.root.digest}")
    assert isinstance(error, Corrupt)
    assert str(Digest.of(HTML)) in str(error)


def test_the_media_type_in_the_document_wins(registries: Registries, registry: FakeRegistry) -> None:
    image = images.image(seed=4, docker=True)
    images.load(registry, REPOSITORY, image, "v4")
    on_head(registry, Answer(405))
    on_get(registry, WithHeaders((("Content-Type", images.OCI_INDEX),)))
    assert registries.resolve(reference(registry, ":v4")).descriptor.media_type == images.DOCKER_MANIFEST


def test_a_document_without_media_type_is_recognized_by_its_fields(registries: Registries, registry: FakeRegistry) -> None:
    registry.put_manifest(REPOSITORY, b'{"schemaVersion": 2, "manifests": []}', "application/json", tag="bare")
    assert registries.resolve(reference(registry, ":bare")).descriptor.media_type == images.OCI_INDEX


@pytest.mark.parametrize("action", [Flip(5), WithHeaders((("Docker-Content-Digest", OTHER_DIGEST),))], ids=str)
def test_a_document_of_another_digest_is_corrupt(registries: Registries, registry: FakeRegistry, action: Action) -> None:
    on_head(registry, Answer(405))
    on_get(registry, action)
    error = refusal(registries, registry)
    assert isinstance(error, Corrupt)
    assert error.retryable


def test_a_document_that_breaks_off_is_unavailable(registries: Registries, registry: FakeRegistry) -> None:
    on_head(registry, Answer(405))
    on_get(registry, Cut(10))
    assert isinstance(refusal(registries, registry), Unavailable)


def test_a_document_with_a_content_coding_is_refused(registries: Registries, registry: FakeRegistry) -> None:
    on_head(registry, Answer(405))
    on_get(registry, WithHeaders((("Content-Encoding", "gzip"),)))
    error = refusal(registries, registry)
    assert isinstance(error, Unsupported)
    assert "gzip" in str(error)


@pytest.mark.parametrize("header", ["junk", "sha256:abc", "md5:" + "0" * 32, "x" * 5000, "sha256:\x1b[31m"])
def test_a_bad_digest_header_is_refused(registries: Registries, registry: FakeRegistry, header: str) -> None:
    on_head(registry, WithHeaders((("Docker-Content-Digest", header),)))
    refusal(registries, registry)
    assert list_requests(registry) == [f"HEAD {MANIFESTS}v1"]


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, InvalidInput, False),
        (401, Denied, False),
        (404, NotFound, False),
        (408, Unavailable, True),
        (418, InvalidInput, False),
        (429, Unavailable, True),
        (500, Unavailable, True),
        (502, Unavailable, True),
        (503, Unavailable, True),
        (204, InvalidInput, False),
        (304, InvalidInput, False),
    ],
)
def test_a_refused_head_is_reported(
    registries: Registries, registry: FakeRegistry, status: int, kind: type[DistError], *, retryable: bool
) -> None:
    on_head(registry, Answer(status, (("Retry-After", "7"),)))
    error = refusal(registries, registry)
    assert isinstance(error, kind)
    assert isinstance(error, RegistryError)
    assert error.retryable is retryable
    facts = error.exchange
    assert (facts.method, facts.status, facts.retry_after_s) == ("HEAD", status, 7)
    assert facts.url == f"http://{registry.host}{MANIFESTS}v1"
    assert list_requests(registry) == [f"HEAD {MANIFESTS}v1"]


@pytest.mark.parametrize(("status", "kind"), [(401, Denied), (403, Denied), (429, Unavailable), (500, Unavailable)])
def test_a_refused_get_reports_the_error_codes(
    registries: Registries, registry: FakeRegistry, status: int, kind: type[DistError]
) -> None:
    body = json.dumps({"errors": [{"code": "BECAUSE", "message": "the moon\nis full"}, {"code": "AND"}]}).encode()
    on_head(registry, Answer(403))
    on_get(registry, Answer(status, (("Retry-After", "30"),), body))
    error = refusal(registries, registry)
    assert isinstance(error, kind)
    assert isinstance(error, RegistryError)
    assert error.exchange.codes == ("BECAUSE: the moon is full", "AND")
    assert error.exchange.retry_after_s == 30
    assert "BECAUSE: the moon is full" in str(error)


@pytest.mark.parametrize("named", ["", "@sha256:abc", "@abc", ":v1@sha512:" + "0" * 64, "@md5:" + "0" * 32])
def test_a_reference_without_tag_and_digest_causes_no_request(
    registries: Registries, registry: FakeRegistry, named: str
) -> None:
    refusal(registries, registry, named)
    assert registry.requests == []


def test_a_redirected_head_stays_a_head(registries: Registries, registry: FakeRegistry, other: FakeRegistry) -> None:
    images.load(other, REPOSITORY, IMAGE, "v1")
    on_head(registry, Redirect(f"http://{other.host}{{path}}"))
    assert str(registries.resolve(reference(registry)).descriptor.digest) == IMAGE.root.digest
    assert list_requests(other) == list_requests(registry) == [f"HEAD {MANIFESTS}v1"]
