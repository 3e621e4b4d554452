"""Plans of several source registries, without Prefect: each is planned by itself, and errors of one concern no other."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from flows.mirroring.planning import Planning
from flows.progress import LogListener
from ocispec import Descriptor, Reference
from ocispec.errors import Unavailable
from tasks.mirror import Tags
from tasks.session import Session, SessionSpec, open_session
from tests.flows.mirroring.planned import Inquiries, Plans, entries, surveyed

if TYPE_CHECKING:
    from tasks.survey import Ask

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


def listed(*tags: str) -> Callable[[object], object]:
    """Answers lists of tags with these tags, and surveys with images that are nowhere else."""

    def reply(argument: object) -> object:
        first = argument[0] if isinstance(argument, tuple) else argument
        return Tags((tags,)) if isinstance(first, Reference) else surveyed(cast("Sequence[Ask]", argument))

    return reply


def many(host: str, target: str, **more: object) -> dict[str, object]:
    return {"source": f"{host}/app", "target": target, "type": "repository", **more}


def test_images_that_cannot_collide_do_not_wait_for_a_registry_that_is_not_listed(
    planning: Planning, inquiries: Inquiries, plans: Plans
) -> None:
    free = {**ONE, "source": "one.example/other:v1", "target": "registry.example/free:v1"}
    planning.begin(entries(many("slow.example", "registry.example/app"), {**ONE, "target": "registry.example/app:v1"}, free))
    inquiries.answer("one.example", surveyed)
    assert plans.changes == {"registry.example/free:v1": "add"}
    assert plans.plan is None

    inquiries.answer("slow.example", listed("v1", "v2"))
    inquiries.answer("one.example", surveyed)
    assert plans.changes == {
        "registry.example/free:v1": "add",
        "registry.example/app:v1": "failed",
        "registry.example/app:v2": "add",
    }
    assert plans.plan is not None
    assert len(plans.plan.errors) == 2
    assert all("expected one source for this target, got 2" in error for error in plans.plan.errors)


def test_images_are_planned_once_their_target_turns_out_to_be_free(
    planning: Planning, inquiries: Inquiries, plans: Plans
) -> None:
    planning.begin(entries(many("slow.example", "registry.example/app"), {**ONE, "target": "registry.example/app:v1"}))
    assert [one.lane for one in inquiries.open] == ["slow.example"]
    inquiries.answer("slow.example", listed("v2"))
    inquiries.answer("one.example", surveyed)
    assert plans.changes == {"registry.example/app:v1": "add", "registry.example/app:v2": "add"}
    assert plans.plan is not None
    assert plans.plan.errors == []
