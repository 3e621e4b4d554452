"""Plans of several source registries, without Prefect: each is planned by itself, and errors of one concern no other."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.mirroring.planning import Planning
from flows.progress import LogListener
from ocispec import Descriptor
from ocispec.errors import Unavailable
from tasks.session import Session, SessionSpec, open_session
from tests.flows.mirroring.planned import Inquiries, Plans, entries, surveyed

ONE = {"source": "one.example/app:v1", "target": "registry.example/one:v1", "type": "image"}
TWO = {"source": "two.example/app:v1", "target": "registry.example/two:v1", "type": "image"}
LISTENER = LogListener(logging.getLogger("test"))


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with open_session(SessionSpec(store=str(tmp_path)), observer=LISTENER) as session:
        yield session


@pytest.fixture
def inquiries() -> Inquiries:
    return Inquiries()


@pytest.fixture
def plans() -> Plans:
    return Plans()


@pytest.fixture
def planning(session: Session, inquiries: Inquiries, plans: Plans) -> Planning:
    return Planning(session, LISTENER, {}, asking=inquiries, receiver=plans, keep=True, workers=1)


def test_an_unexpected_error_of_a_survey_fails_only_its_images(planning: Planning, inquiries: Inquiries, plans: Plans) -> None:
    planning.begin(entries(ONE, TWO))
    inquiries.answer("one.example", lambda _: RuntimeError("boom"))
    inquiries.answer("two.example", surveyed)
    assert plans.changes == {"registry.example/one:v1": "failed", "registry.example/two:v1": "add"}
    assert plans.plan is not None
    assert plans.plan.errors == ["one.example/app:v1 to registry.example/one:v1: unexpected RuntimeError: boom; report it"]


def test_a_store_that_cannot_be_read_fails_images_and_does_not_end_the_walk(
    planning: Planning, session: Session, inquiries: Inquiries, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: Descriptor) -> bool:
        raise Unavailable(f"blob {descriptor.digest.short}: the store does not answer")

    planning.begin(entries(ONE, TWO))
    monkeypatch.setattr(session.store, "holds", refuse)
    inquiries.answer("one.example", surveyed)
    monkeypatch.undo()
    inquiries.answer("two.example", surveyed)
    assert plans.changes == {"registry.example/one:v1": "failed", "registry.example/two:v1": "add"}
    assert plans.plan is not None
    assert [error.rpartition(": ")[2] for error in plans.plan.errors] == ["the store does not answer"]
