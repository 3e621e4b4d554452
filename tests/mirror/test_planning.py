"""Plans of several source registries, without Prefect: each is planned by itself, and errors of one concern no other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from prefect_dist.mirror.lock import Locked
from prefect_dist.mirror.planning import Planning
from prefect_dist.mirror.surveying import PlanRequest
from prefect_dist.ocispec import Descriptor, Reference
from prefect_dist.ocispec.errors import Unavailable
from prefect_dist.transfer.events import ignore_event
from prefect_dist.transfer.session import Session, SessionSpec, open_session
from prefect_dist.transfer.units import Answer, Answers
from tests.mirror.planned import Plans, Queries, entries, manifest, surveyed

if TYPE_CHECKING:
    from prefect_dist.transfer.survey import ImageQuery

ONE = {"source": "one.example/app:v1", "target": "registry.example/one:v1", "type": "image"}
TWO = {"source": "two.example/app:v1", "target": "registry.example/two:v1", "type": "image"}


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with open_session(SessionSpec(store=str(tmp_path))) as session:
        yield session


@pytest.fixture
def queries() -> Queries:
    return Queries()


@pytest.fixture
def plans() -> Plans:
    return Plans()


Plan = Callable[..., None]


@pytest.fixture
def plan(session: Session, queries: Queries, plans: Plans) -> Plan:
    """Begin to plan the entries of a section `sync`."""

    def begin(*sync: dict[str, Any], locked: Mapping[Reference, Locked] | None = None) -> None:
        request = PlanRequest(entries=entries(*sync), locked=locked or {})
        Planning(request, session, ignore_event, queries, plans).begin()

    return begin


def test_an_unexpected_error_of_a_survey_fails_only_its_images(plan: Plan, queries: Queries, plans: Plans) -> None:
    plan(ONE, TWO)
    queries.answer("one.example", lambda _: RuntimeError("boom"))
    queries.answer("two.example", surveyed)
    assert plans.changes == {"registry.example/one:v1": "failed", "registry.example/two:v1": "add"}
    assert plans.plan is not None
    errors = [str(action.error) for action in plans.plan.actions if action.error]
    assert errors == ["unexpected RuntimeError: boom; this is a bug in dist: report it"]


def test_a_store_that_cannot_be_read_fails_images_and_does_not_end_the_walk(
    plan: Plan, session: Session, queries: Queries, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: Descriptor) -> bool:
        raise Unavailable(f"blob {descriptor.digest.short}: the store does not answer")

    plan(ONE, TWO)
    monkeypatch.setattr(session.store, "holds", refuse)
    queries.answer("one.example", surveyed)
    monkeypatch.undo()
    queries.answer("two.example", surveyed)
    assert plans.changes == {"registry.example/one:v1": "failed", "registry.example/two:v1": "add"}
    assert plans.plan is not None
    assert [type(action.error) for action in plans.plan.actions if action.error] == [Unavailable]


def listed(*tags: str) -> Callable[[object], object]:
    """Answers lists of tags with these tags, and surveys with images that are nowhere else."""

    def reply(argument: object) -> object:
        first = argument[0] if isinstance(argument, tuple) else argument
        return Answers((tags,)) if isinstance(first, Reference) else surveyed(cast("Sequence[ImageQuery]", argument))

    return reply


def many(host: str, target: str, **more: object) -> dict[str, object]:
    return {"source": f"{host}/app", "target": target, "type": "repository", **more}


def test_images_that_cannot_collide_do_not_wait_for_a_registry_that_is_not_listed(
    plan: Plan, queries: Queries, plans: Plans
) -> None:
    free = {**ONE, "source": "one.example/other:v1", "target": "registry.example/free:v1"}
    plan(many("slow.example", "registry.example/app"), {**ONE, "target": "registry.example/app:v1"}, free)
    queries.answer("one.example", surveyed)
    assert plans.changes == {"registry.example/free:v1": "add"}
    assert plans.plan is None

    queries.answer("slow.example", listed("v1", "v2"))
    queries.answer("one.example", surveyed)
    assert plans.changes == {
        "registry.example/free:v1": "add",
        "registry.example/app:v1": "failed",
        "registry.example/app:v2": "add",
    }
    assert plans.plan is not None
    errors = [str(action.error) for action in plans.plan.actions if action.error]
    assert len(errors) == 2
    assert all("expected one source for this target, got 2" in error for error in errors)


def test_images_are_planned_once_their_target_turns_out_to_be_free(plan: Plan, queries: Queries, plans: Plans) -> None:
    plan(many("slow.example", "registry.example/app"), {**ONE, "target": "registry.example/app:v1"})
    assert [one.lane for one in queries.open] == ["slow.example"]
    queries.answer("slow.example", listed("v2"))
    queries.answer("one.example", surveyed)
    assert plans.changes == {"registry.example/app:v1": "add", "registry.example/app:v2": "add"}
    assert plans.plan is not None
    assert all(action.error is None for action in plans.plan.actions)


REGISTRY: dict[str, Any] = {"source": "one.example", "target": "registry.example", "type": "registry", "prune": {"after": "0s"}}
MIRRORED = [f"{name}:v1" for name in ("a", "b", "c")]


def tagged(repositories: Mapping[str, Sequence[str]]) -> Callable[[object], object]:
    """Answers a catalog with these repositories, lists of tags with theirs, and surveys with images that are nowhere else."""

    def reply(argument: object) -> object:
        if isinstance(argument, str):
            return Answer(tuple(repositories))
        found = cast("tuple[Reference | ImageQuery, ...]", argument)
        names = [one.repository for one in found if isinstance(one, Reference)]
        return (
            Answers(tuple(tuple(repositories[name]) for name in names))
            if names
            else surveyed(cast("Sequence[ImageQuery]", found))
        )

    return reply


def replanned(
    plan: Plan, queries: Queries, plans: Plans, repositories: Mapping[str, Sequence[str]], *sync: dict[str, Any]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the tags to remove and the notes of a run after one that mirrored the tag v1 of three repositories."""
    locked = {
        Reference.parse(f"registry.example/{name}"): Locked(
            source=f"one.example/{name}", digest=manifest(name).digest, mirrored=datetime.now(UTC) - timedelta(days=9), own=True
        )
        for name in MIRRORED
    }
    plan(*sync, locked=locked)
    queries.answer("one.example", tagged(repositories))
    assert plans.plan is not None
    return [str(orphan.target) for orphan in plans.plan.to_prune], plans.plan.idle


@pytest.mark.parametrize("lost", [{"b": []}, {}], ids=["it lists no tag", "the catalog lacks it"])
def test_a_repository_of_a_registry_that_was_emptied_is_not_pruned(
    plan: Plan, queries: Queries, plans: Plans, lost: dict[str, list[str]]
) -> None:
    pruned, idle = replanned(plan, queries, plans, {"a": ["v2"], **lost, "c": ["v1"]}, REGISTRY)

    assert pruned == ["registry.example/a:v1"]
    (note,) = idle
    assert note == (
        "mirror.yaml: sync[0]: no tag of one.example/b is selected any more, so their tags at the target are not pruned; "
        "to prune them, exclude the repositories with repos.deny"
    )


def test_repositories_that_the_configuration_excludes_are_pruned(plan: Plan, queries: Queries, plans: Plans) -> None:
    found = {"a": ["v1"], "b": ["v1"]}

    pruned, idle = replanned(plan, queries, plans, found, {**REGISTRY, "repos": {"deny": ["b", "c"]}})

    assert (pruned, idle) == (["registry.example/b:v1", "registry.example/c:v1"], ())


def test_a_repository_is_not_taken_for_emptied_if_another_entry_chooses_of_it(
    plan: Plan, queries: Queries, plans: Plans
) -> None:
    filtered = {**REGISTRY, "tags": {"allow": ["v1"]}}
    special = {"source": "one.example/b", "target": "registry.example/b", "type": "repository", "tags": {"allow": ["w.*"]}}
    found = {"a": ["v1"], "b": ["w1"], "c": ["v1"]}

    pruned, idle = replanned(plan, queries, plans, found, filtered, {**special, "prune": {"after": "0s"}})

    assert (pruned, idle) == (["registry.example/b:v1"], ())


def test_a_repository_of_several_entries_is_not_pruned_if_the_one_that_takes_it_finds_it_emptied(
    plan: Plan, queries: Queries, plans: Plans
) -> None:
    sync = [{**REGISTRY, "repos": {"allow": [name]}} for name in ("a", "b|c")]

    pruned, idle = replanned(plan, queries, plans, {"a": ["v1"], "b": [], "c": ["v1"]}, *sync)

    assert pruned == []
    assert [line.partition(": no tag")[0] for line in idle] == ["mirror.yaml: sync[1]"]
