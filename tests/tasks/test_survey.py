"""What stands for what: how little is asked, what is read, what is part of the answer."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ocispec import Digest, Platform
from ocispec.errors import DistError
from ocispec.selected import select
from tasks.session import Session
from tasks.survey import EVERYTHING, Ask, Found, Known
from tests import images
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.tasks.content import asked, at, root_of

ONE, OTHER = images.image(800, layers=2), images.image(801, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        for image, tag in ((INDEX, "all"), (ONE, "one")):
            images.load(source, "app", image, tag)
        yield source


def known(found: Found) -> Known:
    assert isinstance(found.image, Known)
    return found.image


def test_a_survey_asks_once_at_each_place(session: Session, source: FakeRegistry, target: FakeRegistry) -> None:
    images.load(target, "copy", INDEX, "all")
    ask = Ask(source=at(source, "app:all"), targets=(at(target, "copy:all"),))
    (found,) = session.find([ask], keep=True, workers=2)
    assert known(found).content == ()
    assert (asked(source), asked(target)) == (["HEAD /v2/app/manifests/all"], ["HEAD /v2/copy/manifests/all"])
    assert session.find([ask], keep=True, workers=2) == [found]
    assert len(source.requests) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_a_survey_reads_the_manifests_of_what_has_to_be_brought(
    session: Session, source: FakeRegistry, target: FakeRegistry, *, keep: bool
) -> None:
    images.load(target, "copy", ONE, "all")
    targets = at(target, "copy:all"), at(target, "other:all")
    (found,) = session.find([Ask(source=at(source, "app:all"), targets=targets)], keep=keep, workers=2)
    standing = [there and str(there.digest) if not isinstance(there, DistError) else there for there in found.standing]
    assert standing == [ONE.root.digest, None]
    assert {str(descriptor.digest) for descriptor in known(found).content} == set(INDEX.descriptors)
    manifests = {ONE.root.digest, OTHER.root.digest, INDEX.root.digest}
    assert {one.path.rpartition("/")[2] for one in source.requests if one.method == "GET"} == manifests
    assert {str(info.digest) for info in session.store.walk()} == (manifests if keep else set())


def test_what_cannot_be_told_is_part_of_what_was_found(session: Session, source: FakeRegistry, target: FakeRegistry) -> None:
    target.inject(Fault(method="HEAD", path="/v2/shut/.*", action=Answer(401, (), b"")))
    asks = [
        Ask(source=at(source, "app:none"), targets=(at(target, "copy:none"),)),
        Ask(source=at(source, "app:one"), targets=(at(target, "shut:one"), at(target, "copy:one"))),
    ]
    missing, shut = session.find(asks, keep=True, workers=2)
    assert str(missing.errors[0]).startswith(f"{source.host}/app:none: ")
    (error,) = shut.errors
    assert str(error).startswith(f"{target.host}/shut:one: ")
    assert shut.standing[1] is None
    assert {str(descriptor.digest) for descriptor in known(shut).content} == set(ONE.descriptors)


def test_what_is_to_be_written_anew_is_compared_with_what_that_gives(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    platforms = (Platform.parse("linux/arm64"),)
    documents = {Digest.parse(one.digest): one.raw for one in INDEX.manifests}
    goal = select(root_of(INDEX), platforms, lambda descriptor: documents[descriptor.digest]).root
    assert goal.data is not None
    images.load(target, "copy", OTHER)
    target.put_manifest("copy", goal.data, images.OCI_INDEX, tag="all")
    ask = Ask(source=at(source, "app:all"), targets=(at(target, "copy:all"),), platforms=platforms, rewritten=True)
    (found,) = session.find([ask], keep=True, workers=1)
    assert known(found).root.digest == root_of(INDEX).digest
    assert known(found).goal.digest == goal.digest
    assert known(found).content == ()
    assert found.standing[0] is not None
    assert [one for one in asked(source) if one.startswith("GET")] == [f"GET /v2/app/manifests/{INDEX.root.digest}"]


def test_what_refers_to_an_image_that_is_there_is_asked_for_where_it_goes_along(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    signature = images.artifact(820, subject=ONE)
    images.load(source, "app", signature)
    images.load(target, "copy", ONE, "one")
    ask = Ask(source=at(source, "app:one"), targets=(at(target, "copy:one"),), related=EVERYTHING)
    (found,) = session.find([ask], keep=True, workers=1)
    assert known(found).referrers == {Digest.parse(signature.root.digest)}


def test_referrers_of_what_has_to_be_brought_are_left_to_those_who_bring_it(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    ask = Ask(source=at(source, "app:one"), targets=(at(target, "copy:one"),), related=EVERYTHING)
    (found,) = session.find([ask], keep=True, workers=1)
    assert known(found).referrers == frozenset()
    assert not [one for one in asked(source) if "/referrers/" in one]


@pytest.mark.parametrize("created", ["2026-01-31T12:00:00Z", None])
def test_when_an_image_was_made_is_read_from_its_config(
    session: Session, source: FakeRegistry, target: FakeRegistry, created: str | None
) -> None:
    config = json.dumps({"os": "linux", "architecture": "amd64", "created": created, "rootfs": {"type": "layers"}}).encode()

    def dated(document: dict[str, Any]) -> None:
        document["config"] |= {"digest": images.digest_of(config), "size": len(config)}

    image = images.with_manifest(ONE, dated, blobs={**ONE.blobs, images.digest_of(config): config})
    images.load(source, "app", images.index([image]), "dated")
    ask = Ask(source=at(source, "app:dated"), targets=(at(target, "copy:dated"),), dated=True)
    (found,) = session.find([ask], keep=True, workers=1)
    assert known(found).created == (None if created is None else datetime(2026, 1, 31, 12, tzinfo=UTC))


def test_with_a_single_platform_an_image_takes_the_place_of_its_index(
    session: Session, source: FakeRegistry, target: FakeRegistry
) -> None:
    images.load(source, "app", images.index([ONE, OTHER], nested=True), "nested")
    for tag in ("all", "nested"):
        ask = Ask(source=at(source, f"app:{tag}"), targets=(at(target, f"copy:{tag}"),), single=Platform.parse("linux/arm64"))
        (found,) = session.find([ask], keep=True, workers=1)
        assert known(found).root.digest == known(found).goal.digest == root_of(OTHER).digest
        assert {str(descriptor.digest) for descriptor in known(found).content} == set(OTHER.descriptors)
    ask = Ask(source=at(source, "app:one"), targets=(at(target, "copy:one"),), single=Platform.parse("linux/arm64"))
    (found,) = session.find([ask], keep=True, workers=1)
    assert known(found).root.digest == root_of(ONE).digest  # no index, and so what it is
