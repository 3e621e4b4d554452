"""Mount candidates: repositories of a registry from which a blob can be mounted."""

import time

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.transfer.repositories import MountCandidates

BASE_LAYER, OTHER = Digest.of(b"base"), Digest.of(b"other")
REPOSITORIES = 20_000
MOST_SECONDS = 4.0


def reference(repository: str, host: str = "registry.example") -> Reference:
    return Reference.parse(f"{host}/{repository}:1")


def test_the_mount_candidate_is_another_repository_of_the_same_registry() -> None:
    known = MountCandidates()
    known.note(reference("a"), BASE_LAYER)
    assert known.mount_candidate(reference("a"), BASE_LAYER) is None
    assert known.mount_candidate(reference("b"), BASE_LAYER) == "a"
    assert known.mount_candidate(reference("b"), OTHER) is None
    assert known.mount_candidate(reference("b", "elsewhere.example"), BASE_LAYER) is None
    for repository in ("a", "b", "c"):
        known.note(reference(repository), BASE_LAYER)
    assert known.mount_candidate(reference("a"), BASE_LAYER) == "b"
    assert known.mount_candidate(reference("c"), BASE_LAYER) == "a"
    assert [known.has(reference(repository), BASE_LAYER) for repository in ("a", "c", "d")] == [True, True, False]


def test_lookups_for_a_layer_in_thousands_of_repositories_are_fast() -> None:
    known = MountCandidates()
    references = [reference(f"team/app{number}") for number in range(REPOSITORIES)]
    start = time.process_time()
    for one in references:
        known.mount_candidate(one, BASE_LAYER)
        known.note(one, BASE_LAYER)
    assert time.process_time() - start < MOST_SECONDS
    assert all(known.has(one, BASE_LAYER) for one in references)


def refuse(known: MountCandidates, source: str) -> None:
    known.note_mount("registry.example", BASE_LAYER, source, is_mounted=False)


def test_a_suggestion_is_forgotten_after_one_failed_mount() -> None:
    known = MountCandidates()
    known.suggest("registry.example", BASE_LAYER, "old")
    assert known.mount_candidate(reference("a"), BASE_LAYER) == "old"
    assert not known.has(reference("old"), BASE_LAYER)
    refuse(known, "old")
    for _ in range(2):
        assert known.mount_candidate(reference("a"), BASE_LAYER) is None
        assert not known.can_mount("registry.example", BASE_LAYER, "old")
        known.suggest("registry.example", BASE_LAYER, "old")
    known.suggest("elsewhere.example", BASE_LAYER, "old")
    assert known.mount_candidate(reference("a", "elsewhere.example"), BASE_LAYER) == "old"


def test_a_repository_with_the_content_is_forgotten_after_three_failed_mounts_in_a_row() -> None:
    known = MountCandidates()
    known.note(reference("a"), BASE_LAYER)
    for _ in range(2):
        refuse(known, "a")
        refuse(known, "a")
        assert known.mount_candidate(reference("b"), BASE_LAYER) == "a"
        known.note_mount("registry.example", BASE_LAYER, "a", is_mounted=True)
    for _ in range(3):
        refuse(known, "a")
    assert known.mount_candidate(reference("b"), BASE_LAYER) is None


def test_projects_that_refuse_mounts_from_each_other_upload_once_per_project() -> None:
    """Some registries mount only between the repositories of one project."""
    known, uploads = MountCandidates(), list[str]()
    for number in range(20):
        for project in ("one", "two", "three"):
            place = reference(f"{project}/app{number}")
            source = known.mount_candidate(place, BASE_LAYER)
            is_mounted = source is not None and source.startswith(f"{project}/")
            if source is not None:
                known.note_mount(place.host, BASE_LAYER, source, is_mounted=is_mounted)
            if not is_mounted:
                uploads.append(place.repository)
            known.note(place, BASE_LAYER)
    assert uploads == ["one/app0", "two/app0", "three/app0"]
