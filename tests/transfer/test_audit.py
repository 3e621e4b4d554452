"""Audits find each kind of damage below a tag and among its referrers, with the fewest requests."""

from collections import Counter
from collections.abc import Callable

import pytest

from prefect_dist.ocispec import Digest, Platform
from prefect_dist.ocispec.errors import DistError
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from prefect_dist.transfer.audit import Expected, Finding, audit_tags
from prefect_dist.transfer.session import Session
from tests import images
from tests.fakes.faults import Action, Answer, Cut, Fault, Flip, Lengthen, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.images import BuiltImage
from tests.transfer.content import list_requests, reference_at

ONE, OTHER = images.image(1100, layers=2), images.image(1101, layers=1, platform="linux/arm64/v8")
DEEP = images.index([images.image(1102, layers=1, platform="linux/s390x")])
INDEX = images.index([ONE, OTHER, DEEP])
BILL, SIGNATURE = images.artifact(1103, subject=ONE), images.artifact(1104)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]
STRANGER = images.image(1105)

CONFIG, LAYER, *_ = ONE.blobs
NESTED_LAYER = list(DEEP.blobs)[1]


def load_all(target: FakeRegistry) -> None:
    images.load(target, "copy", INDEX, "v1")
    images.load(target, "copy", BILL)
    images.load(target, "copy", SIGNATURE, SIGNATURE_TAG)


def expected_tag(target: FakeRegistry, tag: str = "v1", built: BuiltImage = INDEX) -> Expected:
    referrers = {Digest.parse(BILL.root.digest): None, Digest.parse(SIGNATURE.root.digest): SIGNATURE_TAG}
    return Expected(
        target=reference_at(target, f"copy:{tag}"),
        digest=Digest.parse(built.root.digest),
        referrers=referrers if built is INDEX else {},
    )


def audit_tag(session: Session, wanted: Expected) -> tuple[str, ...]:
    (found,) = audit_tags(session, [wanted])
    return faults_of(found)


def faults_of(found: Finding | DistError) -> tuple[str, ...]:
    assert not isinstance(found, DistError), found
    return found.faults


def lose(*digests: str) -> Callable[[FakeRegistry], None]:
    def damage(target: FakeRegistry) -> None:
        for digest in digests:
            target.lose("copy", digest)

    return damage


def strike(method: str, kind: str, digest: str, action: Action) -> Callable[[FakeRegistry], None]:
    fault = Fault(method=method, path=f"/v2/copy/{kind}/{digest}", nth=None, action=action)
    return lambda target: target.inject(fault)


DAMAGE: dict[str, tuple[Callable[[FakeRegistry], None], list[str]]] = {
    "a layer is missing": (lose(LAYER), [f"layer {LAYER} is missing"]),
    "a config is missing": (lose(CONFIG), [f"config {CONFIG} is missing"]),
    "a child of an existing index is missing": (
        lose(OTHER.root.digest),
        [f"manifest {OTHER.root.digest} is missing"],
    ),
    "an index in an index is missing": (lose(DEEP.root.digest), [f"index {DEEP.root.digest} is missing"]),
    "a layer below an index in an index is missing": (lose(NESTED_LAYER), [f"layer {NESTED_LAYER} is missing"]),
    "a tag is missing": (lambda target: target.untag("copy", "v1"), ["v1 does not exist"]),
    "a tag has moved": (
        lambda target: images.load(target, "copy", STRANGER, "v1"),
        [f"v1 resolves to {STRANGER.root.digest}, expected {INDEX.root.digest}"],
    ),
    "the manifest of a tag is missing": (
        lose(INDEX.root.digest),
        ["v1 does not exist", f"{INDEX.root.digest} is missing"],
    ),
    "the registry resolves a tag but lacks its manifest": (
        strike("GET", "manifests", INDEX.root.digest, Answer(404)),
        [f"index {INDEX.root.digest} is missing"],
    ),
    "a referrer is missing": (lose(BILL.root.digest), [f"referrer {BILL.root.digest} is missing"]),
    "a blob of a referrer is missing": (
        lose(list(BILL.blobs)[1]),
        [f"blob {list(BILL.blobs)[1]} is missing"],
    ),
    "a referrer is not listed": (
        strike("GET", "referrers", ONE.root.digest, Answer(200, (("Content-Type", images.OCI_INDEX),), b'{"manifests": []}')),
        [f"referrer {BILL.root.digest} is not in the list of referrers of its subject"],
    ),
    "the tag of a signature is missing": (
        lambda target: target.untag("copy", SIGNATURE_TAG),
        [f"{SIGNATURE_TAG} does not exist"],
    ),
    "the tag of a signature has moved": (
        lambda target: images.load(target, "copy", STRANGER, SIGNATURE_TAG),
        [f"{SIGNATURE_TAG} resolves to {STRANGER.root.digest}, expected {SIGNATURE.root.digest}"],
    ),
    "a manifest has other bytes": (
        strike("GET", "manifests", ONE.root.digest, Flip(7)),
        [f"manifest {ONE.root.digest}: expected {ONE.root.digest}, the target has sha256:"],
    ),
    "a blob has another size": (
        strike("HEAD", "blobs", LAYER, Lengthen(3)),
        [f"layer {LAYER} to 127.0.0.1"],
    ),
    "a blob has another digest": (
        strike("HEAD", "blobs", LAYER, WithHeaders((("Docker-Content-Digest", CONFIG),))),
        [f"layer {LAYER} to 127.0.0.1"],
    ),
    "all content is missing": (
        lose(*INDEX.descriptors, *BILL.descriptors, *SIGNATURE.descriptors),
        [
            "v1 does not exist",
            f"{INDEX.root.digest} is missing",
            f"referrer {BILL.root.digest} is missing",
            f"{SIGNATURE_TAG} does not exist",
            f"referrer {SIGNATURE.root.digest} is missing",
        ],
    ),
}


def test_an_audit_of_complete_content_finds_no_faults(session: Session, target: FakeRegistry) -> None:
    load_all(target)
    assert audit_tag(session, expected_tag(target)) == ()


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_audit_names_each_kind_of_damage(session: Session, target: FakeRegistry, damage: str) -> None:
    load_all(target)
    do_damage, expected = DAMAGE[damage]
    do_damage(target)
    found = audit_tag(session, expected_tag(target))
    assert [line[: len(start)] for line, start in zip(sorted(found), sorted(expected), strict=True)] == sorted(expected)


def test_a_blob_with_a_wrong_size_is_reported_with_both_sizes(session: Session, target: FakeRegistry) -> None:
    load_all(target)
    DAMAGE["a blob has another size"][0](target)
    (line,) = audit_tag(session, expected_tag(target))
    size = len(ONE.blobs[LAYER])
    assert line.endswith(f": expected {size} bytes, the registry has {size + 3} bytes")


@pytest.mark.parametrize("wanted", ["linux/amd64", "linux/arm64"])
def test_platforms_that_were_not_selected_are_not_missing_from_an_index(
    session: Session, target: FakeRegistry, wanted: str
) -> None:
    built = {"linux/amd64": ONE, "linux/arm64": OTHER}[wanted]
    images.load(target, "copy", built)
    flat = images.index([ONE, OTHER])
    target.put_manifest("copy", flat.manifests[-1].raw, images.OCI_INDEX, tag="v1")
    platforms = (Platform.parse(wanted),)
    sparse = Expected(target=reference_at(target, "copy:v1"), digest=Digest.parse(flat.root.digest), platforms=platforms)
    assert audit_tag(session, sparse) == ()
    assert len(audit_tag(session, Expected(target=sparse.target, digest=sparse.digest))) == 1

    target.lose("copy", list(built.blobs)[1])

    assert audit_tag(session, sparse) == (f"layer {list(built.blobs)[1]} is missing",)


def test_a_referrer_is_found_by_the_fallback_tag_without_a_referrers_api(session: Session) -> None:
    with FakeRegistry(referrers=False) as target:
        load_all(target)
        wanted = expected_tag(target)
        assert audit_tag(session, wanted) == (f"referrer {BILL.root.digest} is not in the list of referrers of its subject",)
        images.load(target, "copy", images.index([BILL]), fallback_tag(Digest.parse(ONE.root.digest)))
        assert audit_tag(session, wanted) == ()


def test_content_that_tags_of_a_repository_share_is_requested_once(session: Session, target: FakeRegistry) -> None:
    load_all(target)
    images.load(target, "copy", images.index([ONE]), "v2")
    images.load(target, "copy", ONE, "v3")
    wanted = [expected_tag(target), expected_tag(target, "v2", images.index([ONE])), expected_tag(target, "v3", ONE)]

    assert [faults_of(one) for one in audit_tags(session, wanted)] == [(), (), ()]

    requests = Counter(list_requests(target))
    blobs = {*INDEX.blobs, *BILL.blobs, *SIGNATURE.blobs}
    assert {one: times for one, times in requests.items() if "/blobs/" in one} == {
        f"HEAD /v2/copy/blobs/{digest}": 1 for digest in blobs
    }
    manifests = {m.digest for built in (INDEX, images.index([ONE]), BILL, SIGNATURE) for m in built.manifests}
    assert {one: times for one, times in requests.items() if one.startswith("GET") and "/manifests/" in one} == {
        f"GET /v2/copy/manifests/{digest}": 1 for digest in manifests
    }
    heads = {one: times for one, times in requests.items() if one.startswith("HEAD") and "/manifests/" in one}
    keys = "v1", "v2", "v3", SIGNATURE_TAG, BILL.root.digest  # which gives the type of a manifest without a tag
    assert heads == {f"HEAD /v2/copy/manifests/{key}": 1 for key in keys}
    assert [one for one in requests if "/referrers/" in one] == [f"GET /v2/copy/referrers/{ONE.root.digest}"]


def test_referrers_of_several_tags_of_one_index_are_requested_once(session: Session, target: FakeRegistry) -> None:
    load_all(target)
    images.load(target, "copy", INDEX, "v2")

    found = audit_tags(session, [expected_tag(target), expected_tag(target, "v2")])

    assert [faults_of(one) for one in found] == [(), ()]
    requests = Counter(list_requests(target))
    listed = f"GET /v2/copy/referrers/{ONE.root.digest}"
    resolved = [f"HEAD /v2/copy/manifests/{key}" for key in ("v1", "v2", SIGNATURE_TAG, BILL.root.digest)]
    assert {one: requests[one] for one in (listed, *resolved)} == dict.fromkeys((listed, *resolved), 1)


def test_a_missing_layer_is_reported_for_each_tag_and_requested_once(session: Session, target: FakeRegistry) -> None:
    load_all(target)
    images.load(target, "copy", ONE, "v3")
    target.lose("copy", LAYER)

    found = audit_tags(session, [expected_tag(target), expected_tag(target, "v3", ONE)])

    assert [faults_of(one) for one in found] == [(f"layer {LAYER} is missing",)] * 2
    assert list_requests(target).count(f"HEAD /v2/copy/blobs/{LAYER}") == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(method="HEAD", path=".*/manifests/v1", nth=None, action=Answer(503)),
        Fault(method="HEAD", path=".*/manifests/v1", nth=None, action=Answer(401)),
        Fault(path=f".*/manifests/{ONE.root.digest}", nth=None, action=Cut(10)),
        Fault(method="HEAD", path=f".*/blobs/{LAYER}", nth=None, action=Answer(500)),
    ],
    ids=["tag", "authentication", "manifest", "blob"],
)
def test_an_unresolved_tag_is_no_damage_and_does_not_affect_other_tags(
    session: Session, target: FakeRegistry, fault: Fault
) -> None:
    load_all(target)
    images.load(target, "copy", OTHER, "v3")
    target.inject(fault)

    unresolved, right = audit_tags(session, [expected_tag(target), expected_tag(target, "v3", OTHER)])

    assert isinstance(unresolved, DistError), unresolved
    assert target.host in str(unresolved)
    assert faults_of(right) == ()


def test_all_tags_of_an_unreachable_registry_are_unresolved(session: Session) -> None:
    with FakeRegistry() as gone:
        pass
    found = audit_tags(session, [expected_tag(gone), expected_tag(gone, "v3", OTHER)])
    assert len(found) == 2
    assert all(isinstance(one, DistError) and str(one).startswith(f"{gone.host}/copy:v") for one in found)


def test_another_attempt_requests_only_content_without_a_result(session: Session, target: FakeRegistry) -> None:
    load_all(target)
    images.load(target, "copy", OTHER, "v2")
    target.inject(Fault(method="HEAD", path=".*/manifests/v2", action=Answer(401)))
    wanted = (expected_tag(target), expected_tag(target, "v2", OTHER))
    found, unresolved = audit_tags(session, wanted)
    assert (faults_of(found), isinstance(unresolved, DistError)) == ((), True)

    before = len(list_requests(target))
    assert [faults_of(one) for one in audit_tags(session, wanted)] == [(), ()]
    again = list_requests(target)[before:]
    assert again
    assert not [request for request in again if "/manifests/v1" in request or f"/blobs/{LAYER}" in request]

    before = len(list_requests(target))
    audit_tags(session, wanted)
    assert f"HEAD /v2/copy/blobs/{LAYER}" in list_requests(target)[before:]  # existing content may have been lost since then
